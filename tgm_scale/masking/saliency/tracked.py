"""Saliency that follows the picture: a pattern on one frame, warped along the flow (MGMAE, arXiv 2308.10794).

Shapes: B clips, T frames, h x w places of the flow, S slots, R rows, C columns, K centres.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.masking.saliency.inputs import SaliencyInputs
from tgm_scale.runtime import seeding


def mixture(inputs: SaliencyInputs) -> Tensor:
    """The highest of Gaussians about tokens of the base frame, as many as tokens will be visible, of one token's
    standard deviation, seen from every frame along the flow; a slot has the mean over its frames and pixels.

    maps["flow"]: float [B, T, 2, h, w]; from each frame to the one before it (after the base frame) or behind it
    (before the base frame), across then down, as shares of the frame; the base frame is the first of the middle slot,
    T // 2, and its own flow is not read. A place is traced back to the base frame step by step, and the Gaussians are
    read where it ends: so they stay sharp, however many steps. A trace that leaves the frame reads the base frame at
    its own place, as MGMAE fills holes."""
    grid, flow_BT2hw = inputs.grid, inputs.maps["flow"].float()
    frames = flow_BT2hw.shape[1]
    centres_BK2 = _centres(inputs)
    traced = trace(flow_BT2hw)
    home_hw2 = _places(flow_BT2hw.shape[-2], flow_BT2hw.shape[-1], flow_BT2hw.device)
    maps = []
    for place_Bhw2 in traced:
        inside_Bhw1 = ((place_Bhw2 >= 0) & (place_Bhw2 <= 1)).all(dim=-1, keepdim=True)
        read_BP2 = torch.where(inside_Bhw1, place_Bhw2, home_hw2).flatten(1, 2)
        across_BPK, down_BPK = (read_BP2[:, :, None] - centres_BK2[:, None]).unbind(-1)
        nearest_BP = ((across_BPK * grid.columns).square() + (down_BPK * grid.rows).square()).amin(dim=-1)
        height_B1hw = torch.exp(-nearest_BP / 2).view(-1, 1, *home_hw2.shape[:2])
        maps.append(F.adaptive_avg_pool2d(height_B1hw, (grid.rows, grid.columns)))
    pooled_BTRC = torch.cat(maps, dim=1)
    tubelet = frames // grid.slots
    mean_BSRC = torch.zeros((), device=pooled_BTRC.device)
    for k in range(tubelet):  # one after another, in this order in any batch
        mean_BSRC = mean_BSRC + pooled_BTRC[:, k::tubelet] / tubelet
    return mean_BSRC


def trace(flow_BT2hw: Tensor) -> list[Tensor]:
    """Where each frame's places lie in the base frame: T of float32 [B, h, w, 2], across then down, as shares."""
    batch, frames, _, height, width = flow_BT2hw.shape
    base = frames // 2
    home_hw2 = _places(height, width, flow_BT2hw.device)
    traced: dict[int, Tensor] = {base: home_hw2.expand(batch, -1, -1, -1)}
    for outward in (range(base + 1, frames), range(base - 1, -1, -1)):
        for t in outward:
            nearer = t - 1 if t > base else t + 1
            there_Bhw2 = home_hw2 + flow_BT2hw[:, t].permute(0, 2, 3, 1)
            moved_B2hw = (traced[nearer] - home_hw2).permute(0, 3, 1, 2)
            further_B2hw = F.grid_sample(moved_B2hw, 2 * there_Bhw2 - 1, padding_mode="border", align_corners=False)
            traced[t] = there_Bhw2 + further_B2hw.permute(0, 2, 3, 1)
    return [traced[t] for t in range(frames)]


def _places(height: int, width: int, device: torch.device) -> Tensor:
    """Middles of h x w places: float32 [h, w, 2], across then down, as shares."""
    down_h, across_w = ((torch.arange(n, device=device) + 0.5) / n for n in (height, width))
    return torch.stack(torch.broadcast_tensors(across_w, down_h[:, None]), dim=-1)


def _centres(inputs: SaliencyInputs) -> Tensor:
    """Middles of distinct tokens, drawn at random: float32 [B, K, 2]."""
    grid = inputs.grid
    count = max(round(inputs.visible_share * grid.per_slot), 1)
    token_BK = seeding.bits(inputs.seeds_B, grid.per_slot, "saliency.flow").argsort(dim=-1)[:, :count]
    row_BK, column_BK = token_BK // grid.columns, token_BK % grid.columns
    return torch.stack([(column_BK + 0.5) / grid.columns, (row_BK + 0.5) / grid.rows], dim=-1)
