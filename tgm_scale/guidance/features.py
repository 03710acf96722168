"""Patch features of a frozen tower on the token grid: what some terms of the objective are learned from.

Shapes: B clips, T frames of H x W pixels, N tokens of the grid in their order, E features, F frames that the tower
sees, h x w its patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import ImageTower
from tgm_scale.guidance.passes import clips_per_pass, in_passes, on_tokens, slot_frames


class TokenFeatures:
    """Patch features of clips, in the space that they share with captions, by a scorer of guidance.image."""

    def __init__(
        self, image: ImageTower, scorer: str = "value", frames_per_tubelet: str = "all", resolution: int | None = None
    ):
        self.image, self.scorer, self.resolution = image, scorer, resolution
        self.one_frame, self.width = frames_per_tubelet == "one", image.width

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """The mean of each token's patches, not normalised: float32 [B, N, E]. video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            features_FhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
            return on_grid(features_FhwE.unflatten(0, (len(frames_BCFHW), -1)), grid)

        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))
        return in_passes(compute, count, frames_BCFHW)


def on_grid(features_BFhwE: Tensor, grid: Grid) -> Tensor:
    """Features of a tower's patches as those of the grid's tokens: [B, N, E]."""
    return on_tokens(features_BFhwE.movedim(-1, 1), grid).flatten(2).transpose(1, 2)
