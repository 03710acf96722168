"""Attention of a frozen tower's pooling token to the patches, for attention-guided masking.

CLIP: the class token in the last block. SigLIP: the probe of its attention pooling. Mean over the heads, as Unmasked
Teacher takes it (arXiv 2303.16058, section 3.1).

Shapes: B clips, T frames of H x W pixels, S slots x R rows x C columns of tokens, F frames that the tower sees, h x w
its patches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import ImageTower
from tgm_scale.guidance.passes import clips_per_pass, in_passes, on_tokens, slot_frames


class ClassAttention:
    """Attention maps of clips on the token grid."""

    def __init__(self, image: ImageTower, frames_per_tubelet: str = "all", resolution: int | None = None):
        self.image, self.resolution = image, resolution
        self.one_frame = frames_per_tubelet == "one"

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """Share of the attention that goes to each patch, brought to the grid: float32 [B, S, R, C].

        video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            attention_Nhw = self.image.attention(frames_N3HW, self.resolution)
            return on_tokens(attention_Nhw.unflatten(0, (len(frames_BCFHW), -1))[:, None], grid)[:, 0]

        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))
        return in_passes(compute, count, frames_BCFHW)
