"""Saliency that is independent of the clip: keyed noise of several shapes.

Shapes: B clips, S slots, R rows, C columns, K cuboids, L positions along one axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.masking.saliency.inputs import SaliencyInputs
from tgm_scale.runtime import seeding

CUBOIDS = 128  # together they cover 0.97 of a clip of 8 x 14 x 14 on average; what is left over counts as one more
CUBOID_SIDE = (0.25, 0.5)  # share of the frame's height and of its width
CUBOID_LENGTH = (0.25, 1.0)  # share of the clip's slots


def per_token(inputs: SaliencyInputs) -> Tensor:
    """Uniform noise for each token: random masking (MAE-ST, arXiv 2205.09113); tubes under the scope `tube`
    (VideoMAE, arXiv 2203.12602)."""
    grid = inputs.grid
    noise_BN = seeding.uniform(inputs.seeds_B, grid.tokens, "saliency.random")
    return noise_BN.view(-1, grid.slots, grid.rows, grid.columns)


def per_slot(inputs: SaliencyInputs) -> Tensor:
    """One number for all tokens of a slot: frame masking (ablated in VideoMAE, arXiv 2203.12602)."""
    grid = inputs.grid
    noise_BS = seeding.uniform(inputs.seeds_B, grid.slots, "saliency.frame")
    return noise_BS[:, :, None, None].expand(-1, -1, grid.rows, grid.columns)


def cuboids(inputs: SaliencyInputs) -> Tensor:
    """Random cuboids in order, the first scoring highest: block masking in space-time (ablated in MAE-ST, arXiv
    2205.09113, after BEiT, arXiv 2106.08254).

    A cuboid may lie with any part of it in the clip, so that border and centre are covered equally. A token that
    lies in several has the score of the first, one in none has 0."""
    grid, seeds_B = inputs.grid, inputs.seeds_B
    lengths = (grid.slots, grid.rows, grid.columns)
    inside = [_inside(seeds_B, axis, length) for axis, length in enumerate(lengths)]
    inside_BKSRC = inside[0][:, :, :, None, None] & inside[1][:, :, None, :, None] & inside[2][:, :, None, None, :]
    order_K = torch.arange(CUBOIDS, 0, -1, device=seeds_B.device, dtype=torch.uint8)
    return (inside_BKSRC * order_K[:, None, None, None]).amax(dim=1).float()


def _inside(seeds_B: Tensor, axis: int, length: int) -> Tensor:
    """Which positions of an axis each cuboid covers: bool [B, K, L], none where it all but lies outside."""
    smallest, largest = CUBOID_LENGTH if axis == 0 else CUBOID_SIDE
    centre_BK, share_BK = seeding.uniform(seeds_B, 2 * CUBOIDS, f"saliency.block.{axis}").chunk(2, dim=1)
    half_BK = (smallest + (largest - smallest) * share_BK) * length / 2
    half_BK = half_BK.clamp(min=0.5)
    middle_L = torch.arange(length, device=seeds_B.device) + 0.5
    centre_BK = centre_BK * (length + 2 * half_BK) - half_BK
    return (middle_L - centre_BK[..., None]).abs() <= half_BK[..., None]
