"""`differences`: the decoder predicts how each pixel of a target changes from frame to frame.

Frame differences as targets of masked video modelling: MotionMAE (Yang et al. 2022, arXiv 2210.04154, section 3).

Shapes: B clips, C=3, T frames, H W pixels of a video, M target tokens, P values of a patch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tgm_scale.models.patches import gather_tokens, patchify
from tgm_scale.objectives.reconstruction import clip_statistics, reconstruction_error
from tgm_scale.objectives.term import TARGETS, ClipTerm, ClipTermInputs, TermSettings


def frame_differences(video_BCTHW: Tensor) -> Tensor:
    """Return each frame minus the one before it, the first as the second: float32 [B, C, T, H, W], exact for uint8;
    zeros for a clip of one frame."""
    video_BCTHW = video_BCTHW.float()
    if video_BCTHW.shape[2] == 1:
        return torch.zeros_like(video_BCTHW)
    later_BCTHW = video_BCTHW[:, :, 1:] - video_BCTHW[:, :, :-1]
    return torch.cat([later_BCTHW[:, :, :1], later_BCTHW], dim=2)


class Differences(ClipTerm):
    """The term `differences`: squared error of normalised differences (`objective.normalise_by`), by its own head."""

    needs = frozenset({TARGETS})

    def __init__(self, settings: TermSettings) -> None:
        super().__init__(settings)
        self.size, self.by_clip = settings.size, settings.normalise_by == "clip"
        self.head = nn.Linear(settings.size.decoder_width, settings.size.patch_values)

    def forward(self, inputs: ClipTermInputs) -> Tensor:
        assert inputs.decoded_BMK is not None and inputs.target_BM is not None
        differences_BCTHW = frame_differences(inputs.video_BCTHW)
        patches_BNP = patchify(differences_BCTHW, self.size.tubelet, self.size.patch)
        statistics = clip_statistics(differences_BCTHW) if self.by_clip else None
        return reconstruction_error(
            self.head(inputs.decoded_BMK), gather_tokens(patches_BNP, inputs.target_BM), statistics
        )
