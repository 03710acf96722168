"""What all uses of a frozen tower share: which frames of a clip, how many clips in a pass, and the token grid.

Shapes: B clips, T frames of H x W pixels, S slots x R rows x C columns of tokens, F frames that the tower sees, h x w
its patches, X any channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid

# The most tokens of a pass off the CPU, by arithmetic. Enough that a layer's work outlasts the launch of its kernels:
# 16 clips of CLIP's ViT-B/32 (16 frames of 50 tokens each) are 181 GFLOP a layer. Little memory: a block holds some 10
# numbers a feature and token at once (stream, norm, q, k, v, hidden layer twice), in bf16 0.42 GB at a width of 1024;
# the pixels, float32 and four copies of them, 0.99 GB at 32-pixel patches and less at smaller ones.
TOKENS_PER_PASS = 20_480


def clips_per_pass(device: torch.device, tokens: int) -> int:
    """How many clips of `tokens` tokens go through a tower at once: one on a CPU, where a row of a product may depend
    on its place; elsewhere the largest power of two whose tokens are at most TOKENS_PER_PASS, at least one.

    The number depends on tower and frames alone, not on the micro batch or the card: what a clip gets is the same in
    any layout of a run. A last pass that is not full costs as much as one that is."""
    if device.type == "cpu":
        return 1
    return 1 << (max(1, TOKENS_PER_PASS // tokens).bit_length() - 1)


def in_passes(compute: Callable[..., Tensor], count: int, *inputs: Tensor) -> Tensor:
    """`compute(*inputs)` in passes of exactly `count` clips, the last one filled up with zeros: what a clip gets does
    not depend on the batch it comes in."""
    parts = []
    for chunk in zip(*(x.split(count) for x in inputs)):
        lacking = count - len(chunk[0])
        filled = [F.pad(x, (0, 0) * (x.ndim - 1) + (0, lacking)) for x in chunk]
        parts.append(compute(*filled)[: len(chunk[0])])
    return torch.cat(parts)


def slot_frames(video_BCTHW: Tensor, grid: Grid, one_frame: bool) -> Tensor:
    """The frames that a tower sees: all, or the middle one of each slot."""
    tubelet = video_BCTHW.shape[2] // grid.slots
    return video_BCTHW[:, :, tubelet // 2 :: tubelet] if one_frame else video_BCTHW


def on_tokens(maps_BXFhw: Tensor, grid: Grid) -> Tensor:
    """[B, X, S, R, C] of a tower's maps: the mean over each slot's frames; the tower's grid brought to the clip's
    bilinearly, or by the mean of the patches of each token where they divide."""
    maps_NShw = maps_BXFhw.unflatten(2, (grid.slots, -1)).mean(dim=3).flatten(0, 1)
    height, width = maps_NShw.shape[2:]
    if height % grid.rows == 0 and width % grid.columns == 0:
        tokens = F.avg_pool2d(maps_NShw, (height // grid.rows, width // grid.columns))
    else:
        size = (grid.rows, grid.columns)
        tokens = F.interpolate(maps_NShw, size, mode="bilinear", antialias=True, align_corners=False)
    return tokens.unflatten(0, maps_BXFhw.shape[:2])
