"""Key maps for encoders of mae_st and for image ViTs.

mae_st is of Feichtenhofer et al. 2022, its released files were written by PySlowFast; image ViTs are named as in timm
and MAE (He et al. 2022).

mae_st and its files name the encoder the same way, with q, k and v as separate layers. A k bias adds one number to all
scores of a query, to which softmax is invariant: leaving it out is exact. Tensors that this model lacks are left out
and listed: the class token, the learned positions, and the decoder (its output is one frame of two, its
`decoder_embed` has a bias).

Apart from the k bias, an image ViT has the names of mae_st with q, k and v in one layer. Its Conv2d patch embedding is
repeated over the tubelet's frames and divided by their number (Carreira and Zisserman 2017, section 2.2): on a still
clip its output is that of the image model.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tgm_scale.conversion.key_maps import KeyMap, count_blocks, own_names

LEARNED = ("cls_token", "pos_embed", "pos_embed_spatial", "pos_embed_temporal", "pos_embed_class")
ELSEWHERE = ("decoder_", "dec_pos_embed", "pred_head.", "mask_token", "head.")  # decoders of both, finetuned heads

_PARTS = {
    "attn.qkv.weight": ("attn.q.weight", "attn.k.weight", "attn.v.weight"),
    "attn.q_bias": ("attn.q.bias",),
    "attn.v_bias": ("attn.v.bias",),
}


def key_map(state: Mapping[str, Tensor]) -> KeyMap:
    """Return the map from our encoder's names to theirs."""
    names = {}
    for name in own_names("encoder", count_blocks(state, "blocks")):
        theirs = name.removeprefix("encoder.")
        within = theirs.split(".", 2)[-1] if theirs.startswith("blocks.") else ""
        block = theirs.removesuffix(within)
        names[name] = tuple(block + part for part in _PARTS.get(within, (within,))) if within else (theirs,)
    return names


def to_video(state: Mapping[str, Tensor], tubelet: int) -> dict[str, Tensor]:
    """Return an image ViT's tensors, inflated, under mae_st's names. Raises ValueError for another patch embedding."""
    made: dict[str, Tensor] = {}
    for name, value in state.items():
        before, layer, part = name.rpartition("attn.qkv.")
        if name == "patch_embed.proj.weight":
            if value.ndim != 4:
                raise ValueError(f"{name}: wanted a Conv2d's [width, 3, patch, patch], found {list(value.shape)}")
            made[name] = value.float()[:, :, None].repeat(1, 1, tubelet, 1, 1) / tubelet
        elif layer:
            made |= {f"{before}attn.{x}.{part}": third for x, third in zip("qkv", value.chunk(3), strict=True)}
        else:
            made[name] = value
    return made
