"""Masked reconstruction: normalised pixels as targets, mean squared error.

Shapes: B clips, M target tokens, P values of a patch (see models/patches.py for their two orders).
"""

from __future__ import annotations

from torch import Tensor

from tgm_scale.models.patches import CHANNELS, channel_first, channel_last

EPS = 255e-6  # VideoMAE's 1e-6 of a 0..1 range, in grey levels


def _statistics(patches_BMCK: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of each patch, float32 [B, M, C, 1]."""
    return patches_BMCK.mean(-1, keepdim=True), patches_BMCK.var(-1, keepdim=True, unbiased=True).sqrt() + EPS


def normalised_targets(patches_BMP: Tensor) -> Tensor:
    """Each channel of each patch with its mean taken off and divided by its standard deviation (unbiased, + 1e-6):
    VideoMAE's targets (Tong et al. 2022; per channel, as their code does).

    patches: 0..255 of any dtype, order (channel, frame, row, column). Returns float32 [B, M, P] in the order of
    predictions, (frame, row, column, channel). In grey levels sums of uint8 pixels are exact, so a flat patch gives
    exactly 0, where a 0..1 scale would divide rounding noise by the eps."""
    x_BMCK = patches_BMP.float().unflatten(-1, (CHANNELS, -1))
    mean, std = _statistics(x_BMCK)
    return channel_last(((x_BMCK - mean) / std).flatten(-2))


def predicted_pixels(prediction_BMP: Tensor, patches_BMP: Tensor) -> Tensor:
    """Undo `normalised_targets` with the statistics of the true patches, for pictures.

    Returns float32 [B, M, P] in grey levels, order (channel, frame, row, column)."""
    mean, std = _statistics(patches_BMP.float().unflatten(-1, (CHANNELS, -1)))
    x_BMCK = channel_first(prediction_BMP.float()).unflatten(-1, (CHANNELS, -1))
    return (x_BMCK * std + mean).flatten(-2)


def reconstruction_error(prediction_BMP: Tensor, patches_BMP: Tensor) -> Tensor:
    """Mean squared error of predictions against the `normalised_targets` of the true patches, float32 [B]: a mean over
    each clip's target tokens."""
    return (prediction_BMP.float() - normalised_targets(patches_BMP)).square().mean(dim=(1, 2))
