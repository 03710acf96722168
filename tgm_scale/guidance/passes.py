"""What the ways to look at a clip with a frozen tower share: which frames, how many clips at once, and the token grid.

Shapes: B clips, T frames of H x W pixels, S slots x R rows x C columns of tokens, F frames that the tower sees, h x w
its patches, X any channels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid

CLIPS_PER_PASS = 4  # off the CPU


def clips_per_pass(device: torch.device) -> int:
    """One clip a pass on a CPU, where a row of a product may depend on its place; CLIPS_PER_PASS elsewhere."""
    return 1 if device.type == "cpu" else CLIPS_PER_PASS


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
