"""Image ViTs as timm and MAE (He et al. 2022) name them, made into a video encoder.

The Conv2d patch embedding is repeated over the tubelet's frames and divided by their number (Carreira and Zisserman
2017, section 2.2): on a still clip it gives what the image model gives. `qkv.bias` is taken apart; its k part adds one
number to all scores of a query, which softmax does not see, and is dropped: exact. Beside the k bias the names are
those of mae_st with q, k and v in one layer, so the tensors are brought to that form and its key map serves.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def to_video(state: Mapping[str, Tensor], tubelet: int) -> dict[str, Tensor]:
    """An image ViT's tensors, inflated and under mae_st's names. Raises ValueError for another patch embedding."""
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
