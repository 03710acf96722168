"""Parts of the picture from a frozen tower, for part-based masking (SemMAE, arXiv 2206.10207).

SemMAE trains a model of parts of its own; here the patches of a clip fall into PARTS clusters of their features
(k-means on the unit sphere), the same in all slots, so that a part keeps its number while it moves.

Shapes: B clips, T frames of H x W pixels, S slots x R rows x C columns of tokens, N tokens of a clip, E features, P
parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.guidance.image import ImageTower
from tgm_scale.guidance.passes import clips_per_pass, in_passes, on_tokens, slot_frames

PARTS = 7  # SemMAE's number
_ROUNDS = 8


class Parts:
    """Part labels of clips on the token grid."""

    def __init__(
        self,
        image: ImageTower,
        scorer: str = "value",
        frames_per_tubelet: str = "all",
        resolution: int | None = None,
    ):
        self.image, self.scorer, self.resolution = image, scorer, resolution
        self.one_frame = frames_per_tubelet == "one"

    @torch.no_grad()
    def __call__(self, video_BCTHW: Tensor, grid: Grid) -> Tensor:
        """The part of each token, 0 to PARTS - 1: float32 [B, S, R, C]. video_BCTHW: uint8 RGB."""

        def compute(frames_BCFHW: Tensor) -> Tensor:
            frames_N3HW = frames_BCFHW.transpose(1, 2).flatten(0, 1)
            features_FhwE = self.image.patch_tokens(frames_N3HW, self.scorer, self.resolution)
            features_BEFhw = features_FhwE.unflatten(0, (len(frames_BCFHW), -1)).movedim(-1, 1)
            features_BNE = on_tokens(features_BEFhw, grid).flatten(2).transpose(1, 2)
            return _clusters(F.normalize(features_BNE, dim=-1))

        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        count = clips_per_pass(self.image.device, frames_BCFHW.shape[2] * self.image.tokens(self.resolution))
        label_BN = in_passes(compute, count, frames_BCFHW)
        return label_BN.float().view(-1, grid.slots, grid.rows, grid.columns)


def _clusters(x_BNE: Tensor) -> Tensor:
    """Labels int64 [B, N] of unit vectors. The first centre is the vector nearest the mean, each further one the
    vector least like those before: nothing is drawn."""

    def likeness(centre_BPE: Tensor) -> Tensor:
        return x_BNE @ centre_BPE.transpose(1, 2)

    def picked(index_B: Tensor) -> Tensor:
        return x_BNE.gather(1, index_B[:, None, None].expand(-1, 1, x_BNE.shape[2]))

    centre_BPE = picked(likeness(x_BNE.mean(dim=1, keepdim=True))[..., 0].argmax(dim=1))
    while centre_BPE.shape[1] < PARTS:
        nearest_BN = likeness(centre_BPE).amax(dim=2)
        centre_BPE = torch.cat([centre_BPE, picked(nearest_BN.argmin(dim=1))], dim=1)
    for _ in range(_ROUNDS):
        member_BNP = F.one_hot(likeness(centre_BPE).argmax(dim=2), PARTS).to(x_BNE.dtype)
        mean_BPE = member_BNP.transpose(1, 2) @ x_BNE
        kept_BP1 = (member_BNP.sum(dim=1) > 0)[..., None]  # a centre without members stays where it is
        centre_BPE = torch.where(kept_BP1, F.normalize(mean_BPE, dim=-1), centre_BPE)
    return likeness(centre_BPE).argmax(dim=2)
