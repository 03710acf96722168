"""Keys of our modules' state dicts, maps between them and keys of other formats, and the size of a model.

A key map gives for each of our keys the keys of the other format whose tensors, concatenated along the first axis, are
ours. A size follows from the weights' shapes, its heads from metadata: a wrong number of heads loads without complaint
and shifts the outputs, so it comes from a configuration, from the user, or from the published family, and is refused
if none of them states it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tgm_scale.contracts import MAX_FRAMES, MAX_SIDE, MAX_STRIDE
from tgm_scale.models.vit import SIZES, ModelSize
from tgm_scale.runtime.mistakes import first_error

ModelKind = Literal["pretraining", "classifier", "encoder"]
KeyMap = dict[str, tuple[str, ...]]

EXTRAS = ("projection.weight", "log_scale")  # what a run has beyond VideoMAE's weights
# name prefixes of what a run learned besides its model: in its terms, and in a learned mask (assembly/joint_module.py)
TERMS, MASKS = "terms.", "masks."
BLOCK = (
    *("norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.q_bias", "attn.v_bias", "attn.proj.weight"),
    *("attn.proj.bias", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight"),
    "mlp.fc2.bias",
)
_CROSS = ("attn.q.weight", "attn.q.bias", "attn.k.weight", "attn.v.weight", "attn.v.bias")
CROSS_BLOCK = (  # of a decoder with cross-attention
    *(name for name in BLOCK if name not in ("attn.qkv.weight", "attn.q_bias", "attn.v_bias")),
    *_CROSS,
)
_CONTEXT_NORM = ("decoder.context_norm.weight", "decoder.context_norm.bias")
_PATCH_EMBED = ("patch_embed.proj.weight", "patch_embed.proj.bias")
_ENCODER = tuple(f"encoder.{name}" for name in (*_PATCH_EMBED, "norm.weight", "norm.bias"))
_DECODER = (
    *("encoder_to_decoder.weight", "mask_token"),
    *("decoder.norm.weight", "decoder.norm.bias", "decoder.head.weight", "decoder.head.bias"),
)
_OUTSIDE_OF_BLOCKS: dict[ModelKind, tuple[str, ...]] = {
    "pretraining": _ENCODER + _DECODER,
    "encoder": _ENCODER,
    "classifier": (*_PATCH_EMBED, "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"),
}


def blocks_prefix(kind: ModelKind) -> str:
    return "blocks" if kind == "classifier" else "encoder.blocks"


def own_names(
    kind: ModelKind, depth: int, decoder_depth: int = 0, head: bool = True, cross: bool = False
) -> list[str]:
    """Return the weight names of one of our modules, without the extras of a run.

    head: whether a classifier has one; cross: whether a decoder has cross-attention."""
    outside = [name for name in _OUTSIDE_OF_BLOCKS[kind] if head or not name.startswith("head.")]
    stacks: list[tuple[str, int, tuple[str, ...]]] = [(blocks_prefix(kind), depth, BLOCK)]
    if kind == "pretraining":
        stacks.append(("decoder.blocks", decoder_depth, CROSS_BLOCK if cross else BLOCK))
        outside += _CONTEXT_NORM if cross else ()
    inside = [f"{prefix}.{i}.{name}" for prefix, count, names in stacks for i in range(count) for name in names]
    return [*outside, *inside]


def is_cross(names: Iterable[str]) -> bool:
    """Return whether the decoder has cross-attention, recognised by names that only such a decoder has."""
    return any(
        name in _CONTEXT_NORM or (name.startswith("decoder.blocks.") and name.endswith(_CROSS)) for name in names
    )


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """Return the number of blocks `prefix.0`, `prefix.1` ...; at least one, so that a missing first one is
    reported."""
    numbers = [int(found[1]) for name in names if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
    return 1 + max(numbers, default=0)


def check_names(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Raise ValueError that lists every missing and every unknown name."""
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{what}: missing {missing or 'none'}, unknown {unknown or 'none'}; nothing was converted")


def to_own_keys(state: Mapping[str, Tensor], key_map: KeyMap, what: str) -> dict[str, Tensor]:
    """Return their tensors under our names. Raises ValueError as `check_names` does."""
    check_names(state, [other for others in key_map.values() for other in others], what)
    return {
        name: state[others[0]] if len(others) == 1 else torch.cat([state[other] for other in others])
        for name, others in key_map.items()
    }


def from_own_keys(state: Mapping[str, Tensor], key_map: KeyMap, what: str) -> dict[str, Tensor]:
    """Return our tensors under their names, the inverse of `to_own_keys`. Raises ValueError as `check_names` does."""
    check_names(state, key_map, what)
    return {
        other: part
        for name, value in state.items()
        for other, part in zip(key_map[name], value.chunk(len(key_map[name])), strict=True)
    }


FRAMES, IMAGE_SIZE = 16, 224  # in every published VideoMAE model; positions are computed, so files do not state it

_HEADS = {(size.width, size.depth, size.mlp): size.heads for size in SIZES.values()}
_DECODER_HEADS = {(size.decoder_width, size.decoder_mlp): size.decoder_heads for size in SIZES.values()}


Frames = Annotated[int, Field(strict=True, ge=1, le=MAX_FRAMES)]
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]
Count = Annotated[int, Field(strict=True, ge=1)]  # of heads or blocks, which tensors bound
_Statistic = Annotated[float, Field(allow_inf_nan=False)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Section = dict[str, Any] | None


class _Heads(BaseModel):
    heads: Count | None = None
    decoder_heads: int | None = Field(None, strict=True, ge=0)  # 0: no decoder


class _Data(BaseModel):
    stride: Annotated[int, Field(strict=True, ge=1, le=MAX_STRIDE)] | None = None
    sampling: Literal["dense", "segments"] = "dense"
    standardise: bool = False
    mean: tuple[_Statistic, _Statistic, _Statistic] | None = None
    std: tuple[_Deviation, _Deviation, _Deviation] | None = None


class RunConfig(BaseModel):
    """A run's configuration, as far as reading its weights needs it: every section is an object or null."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Section]
    data: _Data | None = None


class Facts(BaseModel):
    """Metadata that this project writes with its weights, and the part of it in other files that is read here."""

    model: _Heads = _Heads()
    frames: Frames | None = None
    image_size: Side | None = None
    labels: list[str] | None = None
    config: RunConfig | None = None
    positions: tuple[Frames, Side] | None = None


@dataclass(frozen=True)
class ModelMetadata:
    """Facts that a file or a user states about a model in addition to its tensors; None if unknown."""

    heads: int | None = None
    decoder_heads: int | None = None
    frames: int | None = None
    image_size: int | None = None
    labels: tuple[str, ...] | None = None  # names of the classes
    config: dict[str, Any] | None = None  # the run's configuration
    positions: tuple[int, int] | None = None  # frames and side of the clips whose positions are interpolated

    @classmethod
    def from_metadata(cls, facts: Mapping[str, Any]) -> ModelMetadata:
        """Parse the metadata written with our weights (a checkpoint's manifest, a file's `tgm_scale` entry).

        Raises ValueError that names the malformed entry."""
        try:
            found = Facts.model_validate(dict(facts))
        except ValidationError as error:
            raise ValueError(first_error(error)) from None
        heads, decoder_heads = found.model.heads, found.model.decoder_heads or None
        labels = tuple(found.labels) if found.labels else None
        config = facts.get("config")
        return cls(heads, decoder_heads, found.frames, found.image_size, labels, config, found.positions)

    def over(self, other: ModelMetadata) -> tuple[ModelMetadata, list[str]]:
        """Return this with gaps filled from `other`, and a note for each value that differs."""
        values, notes = {}, []
        for name in (field.name for field in fields(self)):
            mine, theirs = getattr(self, name), getattr(other, name)
            values[name] = theirs if mine is None else mine
            if None not in (mine, theirs) and mine != theirs:
                notes.append(f"{name}: {mine} as asked for, the file says {theirs}")
        return ModelMetadata(**values), notes


def size_of(kind: ModelKind, state: Mapping[str, Tensor], stated: ModelMetadata) -> tuple[ModelSize, list[str]]:
    """Return the size of a complete set of our weights, and notes on its heads.

    Raises ValueError if heads are neither stated nor those of a published size, or do not divide the width."""
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
