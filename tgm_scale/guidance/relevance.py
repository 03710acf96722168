"""Relevance: how similar each token of a clip is to a caption.

Shapes: B clips, K captions a clip, T frames of H x W pixels, S slots x R rows x C columns of tokens, F frames that the
tower sees, h x w its patches, E width of the joint space.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.features import on_grid
from tgm_scale.guidance.image import SCORERS, ImageTower
from tgm_scale.guidance.passes import clips_per_pass, in_passes, on_tokens, slot_frames


class Relevance:
    """Cosine of patch features and caption embedding, brought to the token grid.

    Clips go through the tower in passes of a fixed number, each at a fixed place with all its frames (see
    guidance.passes)."""

    def __init__(
        self,
        image: ImageTower,
        scorer: str = "value",
        frames_per_tubelet: str = "all",
        resolution: int | None = None,
    ):
        """scorer: 'raw', 'value' or 'vv' (see guidance.image). frames_per_tubelet: 'all', or 'one': the middle frame.
        resolution: side in pixels that the tower sees. Raises ValueError that names the guidance.* key."""
        if scorer not in SCORERS:
            raise ValueError(f"guidance.scorer={scorer}: wanted one of {', '.join(SCORERS)}")
        if frames_per_tubelet not in ("all", "one"):
            raise ValueError(f"guidance.frames_per_tubelet={frames_per_tubelet}: wanted 'all' or 'one'")
        if resolution is not None and resolution % image.patch:
            below = resolution // image.patch * image.patch
            near = " or ".join(str(side) for side in (below, below + image.patch) if side)
            raise ValueError(
                f"guidance.resolution={resolution} is not a multiple of the tower's patch of {image.patch} pixels: "
                f"choose {near}"
            )
        self.image, self.scorer, self.resolution = image, scorer, resolution
        self.one_frame = frames_per_tubelet == "one"

    def __call__(self, video_BCTHW: Tensor, captions_BE: Tensor, grid: Grid) -> Tensor:
        """Relevance of each clip's tokens to its caption: float32 [B, S, R, C], cosines.

        video_BCTHW: uint8 RGB. captions_BE: float, unit length, from the text tower of the same model."""
        return self.of_captions(video_BCTHW, captions_BE[:, None], grid)[:, 0]

    @torch.no_grad()
    def of_captions(self, video_BCTHW: Tensor, captions_BKE: Tensor, grid: Grid) -> Tensor:
        """The same for K captions a clip at the cost of one pass of the tower: float32 [B, K, S, R, C]."""
        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))

        def compute(video: Tensor, captions: Tensor) -> Tensor:
            return on_tokens(self.cosines(video, captions), grid)

        return in_passes(compute, count, frames_BCFHW, captions_BKE)

    @torch.no_grad()
    def with_features(self, video_BCTHW: Tensor, captions_BKE: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """`of_captions`, and what `features.TokenFeatures` gives of the same clips, by one pass of the tower."""
        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))

        def compute(video: Tensor, captions: Tensor) -> Tensor:
            features_BFhwE = self._features(video)
            relevance_BNK = on_tokens(_cosines(features_BFhwE, captions), grid).flatten(2).transpose(1, 2)
            return torch.cat([relevance_BNK, on_grid(features_BFhwE, grid)], dim=2)

        both = in_passes(compute, count, frames_BCFHW, captions_BKE)
        relevance_BNK, features_BNE = both.split([captions_BKE.shape[1], self.image.width], dim=2)
        relevance_BKSRC = relevance_BNK.transpose(1, 2).unflatten(2, (grid.slots, grid.rows, grid.columns))
        return relevance_BKSRC.contiguous(), features_BNE.contiguous()

    @torch.no_grad()
    def cosines(self, video_BCTHW: Tensor, captions_BKE: Tensor) -> Tensor:
        """Before the way to the token grid, in one pass: float32 [B, K, F, h, w] of all frames."""
        return _cosines(self._features(video_BCTHW), captions_BKE)

    def _features(self, video_BCTHW: Tensor) -> Tensor:
        """float32 [B, F, h, w, E]."""
        frames_N3HW = video_BCTHW.transpose(1, 2).flatten(0, 1)
        features_NhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
        return features_NhwE.unflatten(0, (len(video_BCTHW), -1))


def _cosines(features_BFhwE: Tensor, captions_BKE: Tensor) -> Tensor:
    """float32 [B, K, F, h, w]."""
    features_BPE = F.normalize(features_BFhwE, dim=-1).flatten(1, 3)
    # a product for each caption: its bits do not depend on how many captions there are
    captions_KBE1 = captions_BKE.transpose(0, 1).contiguous()[..., None]
    cosine_KBP = [(features_BPE @ caption_BE1).squeeze(-1) for caption_BE1 in captions_KBE1]
    return torch.stack(cosine_KBP, dim=1).unflatten(-1, features_BFhwE.shape[1:4])
