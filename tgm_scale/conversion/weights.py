"""The common form of all formats: the tensors of one of our modules, with the module's size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from tgm_scale.contracts import STANDARD_DEVIATION, STANDARD_MEAN, Grid
from tgm_scale.conversion import key_maps
from tgm_scale.conversion.key_maps import EXTRAS, FRAMES, IMAGE_SIZE, ModelKind, ModelMetadata, size_of
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.patches import patchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import Encoder, ModelOptions, ModelSize
from tgm_scale.runtime import seeding

OWN_ENTRY = "tgm_scale"  # where our files keep metadata next to the tensors
VISIBLE_SHARE = 0.1


@dataclass(frozen=True)
class Weights:
    """A model under our own names. The decoder fields of `size` are 0 if it has none."""

    kind: ModelKind
    state: dict[str, Tensor]  # float32 on the CPU, under our names
    size: ModelSize
    frames: int
    image_size: int
    labels: tuple[str, ...] | None = None  # names of the classes
    config: dict[str, Any] | None = None  # configuration of the run they come from
    notes: tuple[str, ...] = ()  # notes from reading them
    positions: tuple[int, int] | None = None  # clips (frames, side) whose positions are interpolated
    clip_known: bool = True  # False: frames and image_size are assumed, as published models have them

    @classmethod
    def of(cls, kind: ModelKind, state: Mapping[str, Tensor], stated: ModelMetadata, notes: list[str]) -> Weights:
        """Check weights: every name and every shape must be that of our module.

        Raises ValueError that lists missing, unknown, misshapen or non-finite tensors, or asks for the heads."""
        stacks = (key_maps.blocks_prefix(kind), "decoder.blocks")
        depth, decoder_depth = (key_maps.count_blocks(state, stack) for stack in stacks)
        has_head = "head.weight" in state or "head.bias" in state
        names = key_maps.own_names(kind, depth, decoder_depth, head=has_head, cross=key_maps.is_cross(state))
        names += [name for name in EXTRAS if kind == "pretraining" and name in state]
        key_maps.check_names(state, names, f"weights of kind '{kind}'")
        size, remarks = size_of(kind, state, stated)
        own = {name: value.detach().to("cpu", torch.float32).contiguous() for name, value in state.items()}
        frames, image_size = stated.frames or FRAMES, stated.image_size or IMAGE_SIZE
        labels = stated.labels if kind == "classifier" else None
        known = None not in (stated.frames, stated.image_size)
        weights = cls(
            kind, own, size, frames, image_size, labels, stated.config, (*notes, *remarks), stated.positions, known
        )
        if labels and len(labels) != weights.classes:
            raise ValueError(f"{len(labels)} names of classes for a head of {weights.classes}")
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in _module(weights).state_dict().items()}
        wrong = [
            f"{name} {list(own[name].shape)}, wanted {list(shape)}"
            for name, shape in shapes.items()
            if own[name].shape != shape
        ]
        if wrong:
            raise ValueError(f"tensors of other shapes than their model's: {'; '.join(wrong)}")
        if broken := [name for name, value in own.items() if not value.isfinite().all()]:
            raise ValueError(f"tensors with values that are not finite: {', '.join(broken)}")
        return weights

    @property
    def classes(self) -> int:
        return self.state["head.weight"].shape[0] if "head.weight" in self.state else 0

    def metadata(self) -> dict[str, Any]:
        """Return what a reader needs besides the tensors, as plain JSON for `ModelMetadata.from_metadata`."""
        return {
            "kind": self.kind,
            "model": asdict(self.size),
            "frames": self.frames,
            "image_size": self.image_size,
            "labels": list(self.labels) if self.labels else None,
            "config": self.config,
            **({"positions": list(self.positions)} if self.positions else {}),
        }

    @property
    def token_share(self) -> float:
        """Share of a clip's tokens that a classifier reads: `finetune.token_share` of its run. Raises ValueError."""
        of_run = (self.config or {}).get("finetune") if self.kind == "classifier" else None
        if not isinstance(of_run, dict | None):
            raise ValueError(f"config.finetune: found {of_run!r}, wanted a section")
        share = (of_run or {}).get("token_share", 1.0)
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise ValueError(f"config.finetune.token_share: found {share!r}, wanted a share above 0 and at most 1")
        return float(share)

    @property
    def standardised(self) -> bool:
        """Whether training clips were brought to one brightness and contrast (data.standardise)."""
        return bool(((self.config or {}).get("data") or {}).get("standardise"))

    @property
    def of_clips(self) -> str:
        """Description of the training clips; "" for plain windows of frames."""
        whole = ((self.config or {}).get("data") or {}).get("sampling") == "segments"
        parts = [f"of a frame of each of {self.frames} equal parts of a video (data.sampling=segments)"] * whole
        parts += [f"of mean {STANDARD_MEAN} and deviation {STANDARD_DEVIATION} (data.standardise)"] * self.standardised
        return f"trained on clips {', '.join(parts)}" if parts else ""

    @property
    def origin(self) -> Grid | None:
        """Grid that positions are interpolated from, if it is not that of the clips."""
        return Grid.of(*self.positions, self.size.tubelet, self.size.patch) if self.positions else None

    def at(self, frames: int, image_size: int) -> Weights:
        """Return the weights for clips of another shape; positions are interpolated from those of the training
        clips."""
        trained = self.positions or (self.frames, self.image_size)
        positions = None if trained == (frames, image_size) else trained
        return replace(self, frames=frames, image_size=image_size, positions=positions)


def _module(weights: Weights) -> nn.Module:
    size, frames, side = weights.size, weights.frames, weights.image_size
    if weights.kind == "classifier":
        return VideoClassifier(
            size,
            frames,
            side,
            weights.classes,
            options=ModelOptions("sdpa", origin=weights.origin, token_share=weights.token_share),
        )
    if weights.kind == "encoder":
        grid = Grid.of(frames, side, size.tubelet, size.patch)
        return nn.ModuleDict({"encoder": Encoder(size, grid, ModelOptions("sdpa", origin=weights.origin))})
    assert weights.positions is None, "a decoder has positions of its own"
    projection = weights.state.get("projection.weight")
    width = None if projection is None else projection.shape[0]
    return MaskedVideoAutoencoder(size, frames, side, options=ModelOptions("sdpa"), embedding_width=width)


def build(weights: Weights) -> nn.Module:
    """Build our module with these weights, which it shares."""
    with torch.device("meta"):
        module = _module(weights)
    module.to_empty(device="cpu")
    module.load_state_dict({name: weights.state[name] for name in module.state_dict()}, assign=True)
    return module.eval()


@torch.no_grad()
def outputs(weights: Weights) -> Tensor:
    """Compute the fixed clip's outputs: pixels of the hidden tokens, class scores, or tokens."""
    module, video = build(weights), fixed_clip(weights)
    if weights.kind == "classifier":
        return module(video)
    if weights.kind == "encoder":
        encoder = cast(nn.ModuleDict, module)["encoder"]
        return encoder(patchify(video, weights.size.tubelet, weights.size.patch), None)
    return module(video, *fixed_mask(weights)).prediction_BMP


def fixed_clip(weights: Weights) -> Tensor:
    """Return a clip of keyed noise in the model's shape: uint8 [1, 3, T, H, W]."""
    shape = (1, 3, weights.frames, weights.image_size, weights.image_size)
    noise = seeding.bits(torch.tensor([seeding.key("export check")]), torch.Size(shape).numel(), "clip") & 255
    return noise.to(torch.uint8).view(shape)


def fixed_mask(weights: Weights) -> tuple[Tensor, Tensor]:
    """Return visible and target tokens for the fixed clip, int64 [1, V] and [1, M]; a tenth is visible."""
    grid = Grid.of(weights.frames, weights.image_size, weights.size.tubelet, weights.size.patch)
    order = seeding.bits(torch.tensor([seeding.key("export check")]), grid.tokens, "mask").argsort(dim=1)
    visible = max(1, int(grid.tokens * VISIBLE_SHARE))
    return order[:, :visible].sort().values, order[:, visible:].sort().values


def without_extras(weights: Weights) -> Weights:
    """Return the weights that VideoMAE's format can hold."""
    return replace(weights, state={name: x for name, x in weights.state.items() if name not in EXTRAS})


def encoder_of(weights: Weights) -> Weights:
    """Return the encoder of a pretraining model."""
    state = {name: value for name, value in weights.state.items() if name.startswith("encoder.")}
    return replace(weights, kind="encoder", state=state, size=weights.size.without_decoder())


def with_new_head(weights: Weights, classes: int) -> Weights:
    """Return a classifier for finetuning: this encoder with a fresh head, as VideoMAE's finetuning builds it.

    The encoder's last norm is dropped: a classifier normalises after the mean, with a fresh `fc_norm`."""
    size = weights.size.without_decoder()
    fresh = VideoClassifier(
        size, weights.frames, weights.image_size, classes, options=ModelOptions("sdpa")
    ).state_dict()
    state = {name: weights.state.get(f"encoder.{name}", value) for name, value in fresh.items()}
    return replace(weights, kind="classifier", state=state, size=size, labels=None)
