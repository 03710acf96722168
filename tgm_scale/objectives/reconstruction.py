"""`pixels`: masked reconstruction, with normalised pixels as targets and mean squared error.

Shapes: B clips, M target tokens, P values of a patch (see models/patches.py for their two orders), C=3 channels, K
values of a channel of a patch; T, H, W of a video."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from tgm_scale.models.patches import CHANNELS, channel_first, channel_last
from tgm_scale.objectives.term import PIXELS, TARGETS, ClipTerm, ClipTermInputs, TermSettings

EPS = 255e-6  # VideoMAE's 1e-6 of a 0..1 range, in grey levels


class Statistics(NamedTuple):
    """Mean and deviation that normalise targets, in grey levels: float32 [B, M, C, 1], or M = 1 for the clip's."""

    mean: Tensor
    std: Tensor  # unbiased


def patch_statistics(patches_BMP: Tensor) -> Statistics:
    """Return the statistics of each channel of each patch: VideoMAE's (Tong et al. 2022; per channel, as in their
    code).

    patches: 0..255 of any dtype, order (channel, frame, row, column)."""
    return _last_axis_statistics(patches_BMP.float().unflatten(-1, (CHANNELS, -1)))


def clip_statistics(video_BCTHW: Tensor) -> Statistics:
    """Return the statistics of each channel of the whole clip, 0..255. Where most patches are flat, the
    patch-normalised ones are compression noise; these keep a patch's brightness and contrast, and what stands out
    weighs most (docs/lab-notes/demo_recipe.md)."""
    return _last_axis_statistics(video_BCTHW.float().flatten(2)[:, None])


def _last_axis_statistics(x: Tensor) -> Statistics:
    return Statistics(x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=True).sqrt())


def normalised_targets(patches_BMP: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return patches minus the mean, divided by the standard deviation + 1e-6; by default each patch's own.

    patches: 0..255 of any dtype, order (channel, frame, row, column). Returns float32 [B, M, P] in the order of
    predictions, (frame, row, column, channel). In grey levels sums of uint8 pixels are exact, so a flat patch gives
    exactly 0, where a 0..1 scale would divide rounding noise by the eps."""
    mean, std = patch_statistics(patches_BMP) if statistics is None else statistics
    x_BMCK = patches_BMP.float().unflatten(-1, (CHANNELS, -1))
    return channel_last(((x_BMCK - mean) / (std + EPS)).flatten(-2))


def predicted_pixels(prediction_BMP: Tensor, statistics: Statistics) -> Tensor:
    """Undo `normalised_targets`, for pictures.

    Returns float32 [B, M, P] in grey levels, order (channel, frame, row, column)."""
    mean, std = statistics
    x_BMCK = channel_first(prediction_BMP.float()).unflatten(-1, (CHANNELS, -1))
    return (x_BMCK * (std + EPS) + mean).flatten(-2)


def reconstruction_error(prediction_BMP: Tensor, patches_BMP: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return the mean squared error of predictions against the `normalised_targets` of the true patches, averaged over
    each clip's target tokens: float32 [B]."""
    return _squares(prediction_BMP, patches_BMP, statistics).mean(dim=(1, 2))


def token_errors(prediction_BMP: Tensor, patches_BMP: Tensor, statistics: Statistics | None = None) -> Tensor:
    """Return the same error of each target token, float32 [B, M]."""
    return _squares(prediction_BMP, patches_BMP, statistics).mean(dim=2)


def _squares(prediction_BMP: Tensor, patches_BMP: Tensor, statistics: Statistics | None) -> Tensor:
    return (prediction_BMP.float() - normalised_targets(patches_BMP, statistics)).square()


class PixelTerm(ClipTerm):
    """Base of the terms that compare the decoder's predictions with the targets' normalised pixels."""

    needs = frozenset({TARGETS, PIXELS})

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self.by_clip = settings.normalise_by == "clip"

    def statistics(self, inputs: ClipTermInputs) -> Statistics | None:
        """Return the statistics that pixels are normalised by; None: those of each patch."""
        return clip_statistics(inputs.video_BCTHW) if self.by_clip else None


class Pixels(PixelTerm):
    """The term `pixels`: the decoder's own head predicts the targets' pixels."""

    column = "loss_reconstruction"

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.prediction_BMP is not None and inputs.patches_BMP is not None
        return reconstruction_error(inputs.prediction_BMP, inputs.patches_BMP, self.statistics(inputs))
