"""Pictures of a model's reconstruction of the hidden patches, made without using their pixels.

A masked autoencoder with normalised targets (He et al. 2022) predicts a patch's pattern, not its brightness or
contrast. Un-normalising with the true patch's mean and standard deviation, as is common, paints the hidden object's
own colours into the picture. Here both come from nearby visible patches; for targets normalised by the clip, from all
visible patches.

Shapes: B clips, N tokens, V visible, M targets, C=3 channels, K values of a channel of a patch, P = C * K.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.assembly.joint_module import NormaliseBy
from tgm_scale.contracts import Grid, Mask
from tgm_scale.models.patches import CHANNELS, gather_tokens, patchify, unpatchify
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.reconstruction import Statistics, clip_statistics, predicted_pixels

REACH = 1.0  # in tokens: standard deviation of the Gaussian that weights visible patches by distance
DROPPED = 127.5  # grey level of tokens that are neither visible nor predicted


def nearby_statistics(patches_BNP: Tensor, visible_BV: Tensor, target_BM: Tensor, grid: Grid) -> Statistics:
    """Estimate mean and standard deviation of each channel for the targets from the visible patches.

    Gaussian weights of the distance on the token grid, one slot as far as one column. patches: 0..255, order (channel,
    frame, row, column). Returns two float32 [B, M, C, 1]. Values of patches that are not visible are not used."""
    seen_BVCK = gather_tokens(patches_BNP, visible_BV).float().unflatten(-1, (CHANNELS, -1))
    mean_BVC, std_BVC = seen_BVCK.mean(-1), seen_BVCK.std(-1)
    sides = (grid.slots, grid.rows, grid.columns)
    place_N3 = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in sides))
    squared_BMV = torch.cdist(place_N3[target_BM], place_N3[visible_BV]).square()
    weight_BMV = (-squared_BMV / (2 * REACH**2)).softmax(dim=-1)
    return Statistics((weight_BMV @ mean_BVC)[..., None], (weight_BMV @ std_BVC)[..., None])


def seen_statistics(patches_BNP: Tensor, visible_BV: Tensor) -> Statistics:
    """Return mean and standard deviation of each channel over all visible patches, float32 [B, 1, C, 1]."""
    seen_BVCK = gather_tokens(patches_BNP, visible_BV).unflatten(-1, (CHANNELS, -1))
    return clip_statistics(seen_BVCK.transpose(1, 2)[..., None])


@torch.no_grad()
def reconstruct(
    model: MaskedVideoAutoencoder, video_BCTHW: Tensor, mask: Mask, normalise_by: NormaliseBy = "patch"
) -> Tensor:
    """Return the clips completed by the model: visible patches unchanged, targets as predicted, the rest grey.

    Clips and mask are on the model's device. Returns uint8 [B, 3, T, H, W] on the CPU."""
    size, grid = model.size, model.grid
    prediction_BMP = model(video_BCTHW, mask.visible, mask.target).prediction_BMP.cpu()
    patches_BNP = patchify(video_BCTHW.cpu(), size.tubelet, size.patch)
    mask = Mask(mask.visible.cpu(), mask.target.cpu())
    if normalise_by == "clip":
        statistics = seen_statistics(patches_BNP, mask.visible)
    else:
        statistics = nearby_statistics(patches_BNP, mask.visible, mask.target, grid)
    painted_BMP = predicted_pixels(prediction_BMP, statistics)
    canvas_BNP = torch.full(patches_BNP.shape, DROPPED)
    for index, values in (
        (mask.visible, gather_tokens(patches_BNP, mask.visible).float()),
        (mask.target, painted_BMP),
    ):
        canvas_BNP.scatter_(1, index[..., None].expand_as(values), values)
    return unpatchify(canvas_BNP, grid, size.tubelet, size.patch).round().clamp(0, 255).to(torch.uint8)
