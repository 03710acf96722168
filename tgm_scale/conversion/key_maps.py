"""Key maps: the keys of our modules' state dicts, and how keys of other formats are mapped to ours and back.

A key map gives for each of our keys the keys of the other format whose tensors, concatenated along the first axis, are
ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

ModelKind = Literal["pretraining", "classifier", "encoder"]
KeyMap = dict[str, tuple[str, ...]]

EXTRAS = ("projection.weight", "log_scale")  # what a run has in addition to VideoMAE's weights
TERMS = "terms."  # begins the names of what a run's terms learned (planning/module.py)
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
    """The weights of a module of ours, without the extras of a run; a classifier may lack its head, and a decoder may
    be one with cross-attention."""
    outside = [name for name in _OUTSIDE_OF_BLOCKS[kind] if head or not name.startswith("head.")]
    stacks: list[tuple[str, int, tuple[str, ...]]] = [(blocks_prefix(kind), depth, BLOCK)]
    if kind == "pretraining":
        stacks.append(("decoder.blocks", decoder_depth, CROSS_BLOCK if cross else BLOCK))
        outside += _CONTEXT_NORM if cross else ()
    inside = [f"{prefix}.{i}.{name}" for prefix, count, names in stacks for i in range(count) for name in names]
    return [*outside, *inside]


def is_cross(names: Iterable[str]) -> bool:
    """Whether the decoder is one with cross-attention: told by the names that only such a one has."""
    return any(
        name in _CONTEXT_NORM or (name.startswith("decoder.blocks.") and name.endswith(_CROSS)) for name in names
    )


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many blocks `prefix.0`, `prefix.1` ... there are; at least one, so that a lost first one is listed."""
    numbers = [int(found[1]) for name in names if (found := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
    return 1 + max(numbers, default=0)


def check_names(found: Iterable[str], wanted: Iterable[str], what: str) -> None:
    """Raises ValueError that lists every missing and every unknown name."""
    missing, unknown = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unknown:
        raise ValueError(f"{what}: missing {missing or 'none'}, unknown {unknown or 'none'}; nothing was converted")


def to_own_keys(state: Mapping[str, Tensor], key_map: KeyMap, what: str) -> dict[str, Tensor]:
    """Their tensors under our names. Raises ValueError as `check_names` does."""
    check_names(state, [other for others in key_map.values() for other in others], what)
    return {
        name: state[others[0]] if len(others) == 1 else torch.cat([state[other] for other in others])
        for name, others in key_map.items()
    }


def from_own_keys(state: Mapping[str, Tensor], key_map: KeyMap, what: str) -> dict[str, Tensor]:
    """Our tensors under their names: the inverse of `to_own_keys`. Raises ValueError as `check_names` does."""
    check_names(state, key_map, what)
    return {
        other: part
        for name, value in state.items()
        for other, part in zip(key_map[name], value.chunk(len(key_map[name])), strict=True)
    }
