"""Our transformer blocks under timm's names, for code that builds on timm's `Block`.

timm has no VideoMAE and no Conv3d patch embedding: no timm model loads the file as it is, and the file states this.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from tgm_scale.conversion.weights import OWN_ENTRY, Weights, fixed_clip
from tgm_scale.models.patches import PatchEmbed, patchify, sine_cosine_table
from tgm_scale.models.vit import NORM_EPS
from tgm_scale.runtime.compat import prepare_timm
from tgm_scale.runtime.tensors import load_tensors, save_tensors

NOTE = (
    "Transformer blocks of a video model under timm's names: blocks.i.* for timm.models.vision_transformer.Block, and "
    "norm.* or fc_norm.* and head.*. No timm model loads this file as it is: the patch embedding of tubelets and the "
    "positions (sine and cosine over the flattened index) are not in it. LayerNorm eps is 1e-6."
)


def to_timm(weights: Weights) -> dict[str, Tensor]:
    """Return the weights of an encoder or classifier under timm's names; `qkv.bias` joins q's, zeros for k, and
    v's."""
    made: dict[str, Tensor] = {}
    for name, value in weights.state.items():
        name = name.removeprefix("encoder.")
        if name.endswith("attn.q_bias"):
            v_bias = weights.state[_own(weights, name.replace("q_bias", "v_bias"))]
            made[name.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), v_bias])
        elif not name.endswith("attn.v_bias") and not name.startswith("patch_embed."):
            made[name] = value
    return made


def _own(weights: Weights, name: str) -> str:
    return name if weights.kind == "classifier" else f"encoder.{name}"


def write(weights: Weights, file: Path) -> None:
    """Write `to_timm` as a safetensors file with the note and our own metadata."""
    save_tensors(to_timm(weights), file, {OWN_ENTRY: json.dumps({"note": NOTE, **weights.metadata()})})


@torch.no_grad()
def outputs(file: Path, weights: Weights) -> Tensor:
    """Compute the fixed clip's outputs by timm's blocks with the file's weights; the counterpart of
    `weights.outputs`."""
    prepare_timm()
    from timm.models.vision_transformer import Block

    size, state = weights.size, load_tensors(file)
    norm = cast(type[nn.Module], partial(nn.LayerNorm, eps=NORM_EPS))
    ratio = (size.mlp + 0.5) / size.width  # timm rounds width * ratio down
    blocks = nn.Sequential(
        *(Block(size.width, size.heads, ratio, qkv_bias=True, norm_layer=norm) for _ in range(size.depth))
    )
    pooled = weights.kind == "classifier"
    parts: dict[str, nn.Module] = {"blocks": blocks, ("fc_norm" if pooled else "norm"): norm(size.width)}
    if weights.classes:
        parts["head"] = nn.Linear(size.width, weights.classes)
    model = nn.ModuleDict(parts).eval()
    model.load_state_dict(state)
    tokens = model["blocks"](_tokens(weights))
    if not pooled:
        return model["norm"](tokens)
    features = model["fc_norm"](tokens.mean(1))
    return model["head"](features) if weights.classes else features


def _tokens(weights: Weights) -> Tensor:
    embed = PatchEmbed(weights.size.width, weights.size.tubelet, weights.size.patch)
    embed.load_state_dict({x: weights.state[_own(weights, f"patch_embed.{x}")] for x in ("proj.weight", "proj.bias")})
    patches = patchify(fixed_clip(weights), weights.size.tubelet, weights.size.patch)
    return embed(patches) + sine_cosine_table(patches.shape[1], weights.size.width)
