"""Frozen features of a corpus's clips: the mean of the encoder's tokens, everything visible.

Shapes: N clips, D width of the encoder; B, T, H, W of a batch's video; P values of a patch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tgm_scale.contracts import Grid, Problem
from tgm_scale.conversion.read import read
from tgm_scale.conversion.weights import build
from tgm_scale.data.index import Corpus
from tgm_scale.data.loader import ClipLoader
from tgm_scale.models.patches import patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import Encoder, ModelSize

SYNTHETIC_MOTION = "truth.objects.0.motion"
_BATCH = 32  # fixed: a clip's features do not depend on how many others there are
_DEFAULT_STRIDE = 4


@dataclass
class FrozenEncoder:
    """An encoder for clips of a fixed shape, with the frame stride that it was trained on."""

    encoder: Encoder
    size: ModelSize
    frames: int
    image_size: int
    stride: int

    @classmethod
    def load(cls, path: str | Path) -> FrozenEncoder:
        """From a run folder, a checkpoint or any file that holds a pretraining encoder with its last norm.

        Raises ValueError where there is none."""
        weights = read(path)
        if weights.kind == "classifier":
            raise ValueError(
                f"{path}: a finetuned classifier: it has no norm after its encoder. Give a pretraining checkpoint"
            )
        module: Any = build(weights)
        stride = (weights.config or {}).get("data", {}).get("stride", _DEFAULT_STRIDE)
        return cls(module.encoder if weights.kind == "pretraining" else module["encoder"], weights.size,
                   weights.frames, weights.image_size, stride)  # fmt: skip

    def fresh(self, seed: int) -> FrozenEncoder:
        """The same architecture as a run of this seed starts it."""
        model = MaskedVideoAutoencoder(self.size, self.frames, self.image_size, attention="sdpa", seed=seed)
        return FrozenEncoder(model.encoder, self.size, self.frames, self.image_size, self.stride)

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor) -> Tensor:
        """Mean over all tokens after the encoder's norm, float32 [B, D]; video uint8."""
        tokens_BND = self.encoder(patchify(video_BCTHW, self.size.tubelet, self.size.patch), None)
        return tokens_BND.float().mean(dim=1)


class Clips(NamedTuple):
    """The clips of a corpus that can be used, in the order of their keys."""

    features: list[Tensor]  # one of each encoder: float32 [N, D]
    labels: list[str]  # N
    keys: list[str]  # N
    problems: list[Problem]  # of those left out


def label_at(path: str) -> Callable[[dict], str]:
    """Reads a label from a sample's json by a dotted path, such as `label` or `truth.objects.0.motion`."""

    def read_label(fields: Any) -> str:
        for part in path.split("."):
            fields = fields[int(part)] if isinstance(fields, list) else fields[part]
        if isinstance(fields, (dict, list)):
            raise KeyError(f"{path} is no single value")
        return str(fields)

    return read_label


def read_labels(corpus: Corpus, path: str) -> tuple[dict[str, str], list[Problem]]:
    """The label of each sample by its key, and the samples that have none. Raises ValueError where none has one."""
    label_of = label_at(path)
    labels: dict[str, str] = {}
    problems: list[Problem] = []
    for shard, count in enumerate(corpus.counts.tolist()):
        for row in range(count):
            ref = corpus.sample(shard, row)
            try:
                labels[ref.name] = label_of(json.loads(corpus.read(ref, ["json"])["json"]))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                problems.append(Problem(ref.name, "no_label", f"{type(error).__name__}: {error}"))
    if not labels:
        raise ValueError(
            f"corpus {corpus.name!r}: no sample's json has a value at {path!r} ({problems[0].key}: "
            f"{problems[0].detail}); name the label's place, such as 'label' or '{SYNTHETIC_MOTION}'"
        )
    return labels, problems


def extract(
    encoders: list[FrozenEncoder],
    corpus: Corpus,
    label: str,
    *,
    workers: int = 0,
    progress: Callable[[int], None] = lambda clips: None,
) -> Clips:
    """Features of every clip of a corpus by several encoders of one clip shape, each clip decoded once.

    One clip a sample, through the training loader: the whole frame's centre square, a window of frames that depends on
    the sample's key alone; captions are not read. `progress` is called with the clips done after each batch. Clips
    that do not decode or have no label are left out and named."""
    first = encoders[0]
    assert all((e.frames, e.image_size, e.stride) == (first.frames, first.image_size, first.stride) for e in encoders)
    labels, problems = read_labels(corpus, label)
    rows: dict[str, list[Tensor]] = {}
    for keys, weight_B, video_BCTHW, broken in _batches(first, corpus, workers):
        features = [encoder(video_BCTHW) for encoder in encoders]
        problems += broken
        for i, key in enumerate(keys):
            if weight_B[i] and key in labels:
                rows[key] = [features_BD[i] for features_BD in features]
        progress(len(keys))
    if not rows:
        raise ValueError(
            f"corpus {corpus.name!r}: none of its {len(corpus)} clips can be used; the first: {problems[0]}"
        )
    keys = sorted(rows)
    stacked = [torch.stack([rows[key][i] for key in keys]) for i in range(len(encoders))]
    return Clips(stacked, [labels[key] for key in keys], keys, problems)


def _batches(
    shape: FrozenEncoder, corpus: Corpus, workers: int
) -> Iterator[tuple[list[str], Tensor, Tensor, list[Problem]]]:
    """(keys, weights, video, problems) of each batch, every sample once; the last batch may be shorter."""
    samples = len(corpus)
    loader = ClipLoader(
        [corpus],
        frames=shape.frames,
        stride=shape.stride,
        size=shape.image_size,
        grid=Grid.of(shape.frames, shape.image_size, shape.size.tubelet, shape.size.patch),
        seed=0,
        global_batch_size=_BATCH,
        micro_batch_size=_BATCH,
        rank=0,
        world_size=1,
        workers=workers,
        stop_step=math.ceil(samples / _BATCH),
        crop="center",
        captions=False,
    )
    for step, (batch,) in loader:
        count = min(_BATCH, samples - step * _BATCH)  # the rest is of the next epoch
        keys = batch.keys[:count]
        problems = [problem for problem in batch.problems if problem.key in keys]
        yield keys, batch.weight[:count], batch.video, problems
