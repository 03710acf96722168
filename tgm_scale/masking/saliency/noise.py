"""Saliency that looks at nothing: keyed noise of several shapes.

Shapes: B clips, S slots, R rows, C columns, K cuboids, L positions along one axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.runtime import seeding

CUBOIDS = 64  # the first 48 cover 0.95 of the clip on average: enough for a mask ratio of 0.9
CUBOID_SIDE = (0.25, 0.5)  # share of the frame's height and of its width
CUBOID_LENGTH = (0.25, 1.0)  # share of the clip's slots


def per_token(seeds_B: Tensor, grid: Grid, aux: Mapping[str, Tensor]) -> Tensor:
    """Uniform noise for each token: random masking (MAE-ST, arXiv 2205.09113); tubes under the scope `tube`
    (VideoMAE, arXiv 2203.12602)."""
    return seeding.uniform(seeds_B, grid.tokens, "saliency.random").view(-1, grid.slots, grid.rows, grid.columns)


def per_slot(seeds_B: Tensor, grid: Grid, aux: Mapping[str, Tensor]) -> Tensor:
    """One number for all tokens of a slot: frame masking (ablated in VideoMAE, arXiv 2203.12602, section 4)."""
    noise_BS = seeding.uniform(seeds_B, grid.slots, "saliency.frame")
    return noise_BS[:, :, None, None].expand(-1, -1, grid.rows, grid.columns)


def cuboids(seeds_B: Tensor, grid: Grid, aux: Mapping[str, Tensor]) -> Tensor:
    """Random cuboids in order, the first scoring highest: block masking in space-time (MAE-ST, section 4, after BEiT).

    Centres are uniform over the clip and a cuboid may reach over its edge, so the border is not spared. A token that
    lies in several has the score of the first, one in none has 0."""
    lengths = (grid.slots, grid.rows, grid.columns)
    inside = [_inside(seeds_B, axis, length) for axis, length in enumerate(lengths)]
    inside_BKSRC = inside[0][:, :, :, None, None] & inside[1][:, :, None, :, None] & inside[2][:, :, None, None, :]
    order_K = torch.arange(CUBOIDS, 0, -1, device=seeds_B.device, dtype=torch.float32)
    return (inside_BKSRC * order_K[:, None, None, None]).amax(dim=1)


def _inside(seeds_B: Tensor, axis: int, length: int) -> Tensor:
    """Which positions of an axis each cuboid covers: bool [B, K, L]; at least one."""
    smallest, largest = CUBOID_LENGTH if axis == 0 else CUBOID_SIDE
    centre_BK, share_BK = seeding.uniform(seeds_B, 2 * CUBOIDS, f"saliency.block.{axis}").chunk(2, dim=1)
    half_BK = (smallest + (largest - smallest) * share_BK) * length / 2
    middle_L = torch.arange(length, device=seeds_B.device) + 0.5
    distance_BKL = (middle_L - (centre_BK * length)[..., None]).abs()
    return distance_BKL <= half_BK[..., None].clamp(min=0.5)
