"""Parts of the picture from a frozen tower, for part-based masking (SemMAE, arXiv 2206.10207).

SemMAE trains a model of parts of its own; here the patches of a clip fall into PARTS clusters of their features
(k-means on the unit sphere), the same in all slots, so that a part keeps its number while it moves.

Shapes: B clips, T frames of H x W pixels, S slots x R rows x C columns of tokens, N tokens of a clip, E features.
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
            return torch.stack([_clusters(F.normalize(one_NE, dim=-1)) for one_NE in features_BNE])

        frames_BCFHW = slot_frames(video_BCTHW, grid, self.one_frame)
        label_BN = in_passes(compute, clips_per_pass(self.image.device), frames_BCFHW)
        return label_BN.float().view(-1, grid.slots, grid.rows, grid.columns)


def _clusters(x_NE: Tensor) -> Tensor:
    """Labels int64 [N] of unit vectors. The first centre is the vector nearest the mean, each further one the vector
    least like those before: nothing is drawn."""
    centres = [x_NE[(x_NE @ x_NE.mean(0)).argmax()]]
    nearest_N = x_NE @ centres[0]
    for _ in range(PARTS - 1):
        centres.append(x_NE[nearest_N.argmin()])
        nearest_N = torch.maximum(nearest_N, x_NE @ centres[-1])
    centre_PE = torch.stack(centres)
    for _ in range(_ROUNDS):
        member_NP = F.one_hot((x_NE @ centre_PE.T).argmax(dim=1), PARTS).float()
        mean_PE = member_NP.T @ x_NE
        kept_P1 = member_NP.any(dim=0)[:, None]  # a centre without members stays where it is
        centre_PE = torch.where(kept_P1, F.normalize(mean_PE, dim=-1), centre_PE)
    return (x_NE @ centre_PE.T).argmax(dim=1)
