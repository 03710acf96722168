"""Frozen features: the encoder's tokens of a whole, unmasked clip after its last norm, or their mean.

Shapes: N samples, K tokens, D width of the encoder; B, T, H, W of a batch's video.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import Weights, build, encoder_of
from tgm_scale.data.shards.index import Corpus
from tgm_scale.evaluation.cache import Clips, RowModel, cached_rows, refuse_empty
from tgm_scale.evaluation.clips import chunks, inference, run_models
from tgm_scale.evaluation.labelled import LabelledCorpus, read_labels
from tgm_scale.evaluation.views import Decoder, Decoding, Views
from tgm_scale.models.local_start import start_locally
from tgm_scale.models.patches import patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, Encoder, ModelOptions, ModelSize
from tgm_scale.runtime.distributed import HostCollectives

Pooling = Literal["mean", "2x2", "4x4", "tokens"]
DEFAULT_STRIDE = 4
_CPU = torch.device("cpu")


@dataclass
class FrozenEncoder:
    """An encoder for clips of a fixed shape, with the frame stride that it was trained on."""

    encoder: Encoder
    size: ModelSize
    frames: int
    image_size: int
    stride: int
    projection: Tensor | None = None  # [E, D]: to the text embeddings of a joint run
    device: torch.device = _CPU
    initialisation: str = "videomae"  # of the run that trained it
    towers: str | None = None  # guidance.towers of that run
    positions: tuple[int, int] | None = None  # frames and side of the clips whose positions are interpolated
    sampling: str = "dense"  # in training
    standardise: bool = False  # whether training clips were standardised

    @classmethod
    def load(
        cls, path: str | Path, device: torch.device = _CPU, frames: int | None = None, image_size: int | None = None
    ) -> FrozenEncoder:
        """Load from a run folder, a checkpoint or any file that holds a pretraining encoder with its last norm.

        By default for clips of the shape that it was trained on; for another shape, positions are interpolated. Raises
        ValueError if there is no encoder, or the shape does not divide into the model's tokens."""
        found = read(path)
        shape = frames or found.frames, image_size or found.image_size
        if shape == (found.frames, found.image_size):
            return cls.of(found, path, device)
        refuse_shape(*shape, found.size)
        trained = cls.of(found, path, device)
        moved = (encoder_of(found) if found.kind == "pretraining" else found).at(*shape)
        module: Any = build(moved)
        return replace(
            trained,
            encoder=module["encoder"].to(device),
            frames=moved.frames,
            image_size=moved.image_size,
            positions=moved.positions,
        )

    @classmethod
    def random(
        cls,
        size: str,
        frames: int,
        image_size: int,
        seed: int,
        device: torch.device = _CPU,
        initialisation: str = "videomae",
    ) -> FrozenEncoder:
        """Return the initialisation of a run with this seed: the baseline for training."""
        dimensions = SIZES[size]
        refuse_shape(frames, image_size, dimensions)
        model = MaskedVideoAutoencoder(dimensions, frames, image_size, options=ModelOptions("sdpa"), seed=seed)
        if initialisation == "local":
            start_locally(model)
        return cls(model.encoder.to(device), dimensions, frames, image_size, DEFAULT_STRIDE, None, device)

    @classmethod
    def of(cls, weights: Weights, path: str | Path, device: torch.device = _CPU) -> FrozenEncoder:
        if weights.kind == "classifier":
            raise ValueError(
                f"{path}: a finetuned classifier: it has no norm after its encoder. Give a pretraining checkpoint; to "
                "classify videos by it, `tgm-scale convert ... --to huggingface` writes a folder that does"
            )
        module: Any = build(weights)
        encoder = module.encoder if weights.kind == "pretraining" else module["encoder"]
        projection = weights.state.get("projection.weight")
        data = (weights.config or {}).get("data") or {}
        return cls(
            encoder.to(device),
            weights.size,
            weights.frames,
            weights.image_size,
            data.get("stride") or DEFAULT_STRIDE,
            None if projection is None else projection.to(device),
            device,
            ((weights.config or {}).get("model") or {}).get("initialisation", "videomae"),
            ((weights.config or {}).get("guidance") or {}).get("towers"),
            weights.positions,
            data.get("sampling", "dense"),
            weights.standardised,
        )

    def fresh(self, seed: int) -> FrozenEncoder:
        """Return the same architecture with the initial weights of a run of this seed."""
        model = MaskedVideoAutoencoder(
            self.size, self.frames, self.image_size, options=ModelOptions("sdpa"), seed=seed
        )
        if self.initialisation == "local":
            start_locally(model)
        return replace(self, encoder=model.encoder.to(self.device), projection=None)

    def views(self, **changes: Any) -> Views:
        """Return the views of this encoder's clip shape; without `changes`, the centre square of the middle window."""
        of_training = {"stride": self.stride, "sampling": self.sampling, "standardise": self.standardise}
        return Views(**{"frames": self.frames, "size": self.image_size, **of_training, **changes})

    @torch.no_grad()
    def tokens(self, video_BCTHW: Tensor) -> Tensor:
        """Return all tokens after the encoder's norm, float32 [B, K, D]; video uint8."""
        with inference(self.device):
            patches = patchify(video_BCTHW.to(self.device), self.size.tubelet, self.size.patch)
            return self.encoder(patches, None).float()

    def __call__(self, video_BCTHW: Tensor) -> Tensor:
        """Return the mean of all tokens, float32 [B, D]."""
        return self.tokens(video_BCTHW).mean(dim=1)

    def by_place(self, video_BCTHW: Tensor, side: int) -> Tensor:
        """Return the mean tokens of side x side places in each slot, concatenated, float32 [B, S * side^2 * D].

        S: slots of time. If `side` does not divide the grid, tokens that two places share count in both."""
        grid = Grid.of(self.frames, self.image_size, self.size.tubelet, self.size.patch)
        tokens_BSRCD = self.tokens(video_BCTHW).unflatten(1, (grid.slots, grid.rows, grid.columns))
        maps_NDRC = tokens_BSRCD.flatten(0, 1).permute(0, 3, 1, 2)
        return F.adaptive_avg_pool2d(maps_NDRC, side).unflatten(0, (-1, grid.slots)).flatten(1)

    @property
    def digest(self) -> str:
        """Identifier of what computes the features: the weights, and what they do not contain (heads, positions)."""
        digest = hashlib.blake2b(repr((self.size.heads, self.positions)).encode(), digest_size=8)
        for name, value in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode() + value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def extract(
    encoders: list[FrozenEncoder],
    corpus: Corpus,
    label: str,
    *,
    workers: int = 0,
    progress: Callable[[int], None] = lambda samples: None,
) -> Clips:
    """Return mean features of every clip of a corpus by several encoders of one clip shape; each clip is decoded once.

    Uses the centre square of the middle window. `progress` is called with the number of clips done. Clips that do not
    decode or have no label are left out and listed as problems. Raises ValueError if none is left."""
    views = encoders[0].views()
    assert all(encoder.views() == views for encoder in encoders)
    labels, problems = read_labels(corpus, label)
    source = LabelledCorpus(corpus, labels, problems)
    modules = [encoder.encoder for encoder in encoders]
    with Decoder(Decoding(views, workers, progress)) as decoder:
        found = [
            run_models(lambda video: [encoder(video) for encoder in encoders], corpus, refs, decoder, modules)
            for refs in chunks(source.refs)
        ]
    parts = [part for part in found if part.names]
    names = [name for part in parts for name in part.names]
    broken = [problem for part in found for problem in part.problems]
    refuse_empty(names, source, broken)
    features = [torch.cat([part.rows[i] for part in parts])[:, 0] for i in range(len(encoders))]
    return Clips(features, [labels[name] for name in names], names, [*problems, *broken])


def cached(
    folder: Path,
    encoder: FrozenEncoder,
    source: LabelledCorpus,
    decoding: Decoding,
    pooling: Pooling,
    collectives: HostCollectives,
) -> Clips:
    """Return each labelled sample's features, averaged over views, cached below `folder`; collective
    (`cached_rows`)."""
    return cached_rows(folder, row_model(encoder, pooling), source, decoding, collectives)


def refuse_shape(frames: int, image_size: int, size: ModelSize) -> None:
    """Raise ValueError for clips that do not divide into the tokens of a model of this size."""
    for key, found, of in (("frames", frames, size.tubelet), ("image_size", image_size, size.patch)):
        if found % of:
            raise ValueError(f"encoder.{key}={found}: wanted a multiple of {of}, which a token of this model has")


def row_model(encoder: FrozenEncoder, pooling: Pooling) -> RowModel:
    """Return the row model of a pooling.

    `tokens` keeps every token of every view in float16; `2x2` and `4x4` keep the means of `by_place`."""
    if pooling == "tokens":
        return RowModel(encoder.tokens, encoder.encoder, (encoder.digest, "tokens of all views"), torch.float16)
    if pooling in ("2x2", "4x4"):
        by_place = partial(encoder.by_place, side=int(pooling[0]))
        return RowModel(by_place, encoder.encoder, (encoder.digest, pooling))
    return RowModel(encoder, encoder.encoder, (encoder.digest, pooling))
