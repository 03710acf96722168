"""The size of a model from its weights' shapes, and its heads from metadata: never from the weights.

A wrong count of heads loads without complaint and shifts the outputs, so it comes from a configuration, from the user,
or from the published family, and is refused where none of them knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import Tensor

from tgm_scale.conversion.key_maps import ModelKind, blocks_prefix, count_blocks, is_cross
from tgm_scale.models.vit import SIZES, ModelSize

FRAMES, IMAGE_SIZE = 16, 224  # of every published VideoMAE model; positions are computed, so a file does not say

_HEADS = {(size.width, size.depth, size.mlp): size.heads for size in SIZES.values()}
_DECODER_HEADS = {(size.decoder_width, size.decoder_mlp): size.decoder_heads for size in SIZES.values()}


@dataclass(frozen=True)
class ModelMetadata:
    """What a file or a user states about a model in addition to its tensors; None where unknown."""

    heads: int | None = None
    decoder_heads: int | None = None
    frames: int | None = None
    image_size: int | None = None
    labels: tuple[str, ...] | None = None  # names of the classes
    config: dict[str, Any] | None = None  # the run's configuration
    positions: tuple[int, int] | None = None  # frames and side of the clips whose positions are interpolated

    @classmethod
    def from_metadata(cls, facts: Mapping[str, Any]) -> ModelMetadata:
        """From what this project writes with its weights (a checkpoint's manifest, a file's `tgm_scale` entry)."""
        model = facts.get("model", {})
        labels, positions = facts.get("labels"), facts.get("positions")
        return cls(
            model.get("heads"),
            model.get("decoder_heads") or None,
            facts.get("frames"),
            facts.get("image_size"),
            tuple(labels) if labels else None,
            facts.get("config"),
            (int(positions[0]), int(positions[1])) if positions else None,
        )

    def over(self, other: ModelMetadata) -> tuple[ModelMetadata, list[str]]:
        """This laid over `other`, and a line for each value that differs."""
        values, notes = {}, []
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            values[name] = theirs if mine is None else mine
            if None not in (mine, theirs) and mine != theirs:
                notes.append(f"{name}: {mine} as asked for, the file says {theirs}")
        return ModelMetadata(**values), notes


def size_of(kind: ModelKind, state: Mapping[str, Tensor], stated: ModelMetadata) -> tuple[ModelSize, list[str]]:
    """The size of a complete set of our weights, and remarks on its heads.

    Raises ValueError where heads are neither stated nor those of a published size, or do not divide the width."""
    prefix = "" if kind == "classifier" else "encoder."
    kernel = state[f"{prefix}patch_embed.proj.weight"].shape
    if len(kernel) != 5 or kernel[1] != 3 or kernel[3] != kernel[4]:
        raise ValueError(
            f"{prefix}patch_embed.proj.weight: wanted [width, 3, tubelet, patch, patch], found {list(kernel)}"
        )
    width, _, tubelet, _, patch = kernel
    depth = count_blocks(state, blocks_prefix(kind))
    mlp = state[f"{blocks_prefix(kind)}.0.mlp.fc1.weight"].shape[0]
    heads, notes = _heads("heads", width, stated.heads, _HEADS.get((width, depth, mlp)))
    decoder = (0, 0, 0, 0)
    if kind == "pretraining":
        decoder_width = state["encoder_to_decoder.weight"].shape[0]
        decoder_mlp = state["decoder.blocks.0.mlp.fc1.weight"].shape[0]
        published = _DECODER_HEADS.get((decoder_width, decoder_mlp))
        decoder_heads, more = _heads("decoder-heads", decoder_width, stated.decoder_heads, published)
        decoder = (decoder_width, count_blocks(state, "decoder.blocks"), decoder_heads, decoder_mlp)
        notes += more
    attention: Literal["self", "cross"] = "cross" if kind == "pretraining" and is_cross(state) else "self"
    size = ModelSize(width, depth, heads, mlp, *decoder, patch=patch, tubelet=tubelet, decoder_attention=attention)
    return size, notes


def _heads(name: str, width: int, stated: int | None, published: int | None) -> tuple[int, list[str]]:
    heads = stated or published
    if heads is None:
        raise ValueError(
            f"how many heads? Weights do not tell, the file does not say, and no published model has this shape "
            f"(width {width}): give --{name} N to `tgm-scale convert`"
        )
    if width % heads:
        raise ValueError(f"{name}: {heads} does not divide the width of {width}")
    if published not in (None, heads):
        return heads, [f"{name}: {heads} as stated; the published model of this shape has {published}"]
    return heads, []
