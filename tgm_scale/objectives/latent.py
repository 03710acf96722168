"""Distance between learned features and a frozen image tower's, for the terms that learn them.

Shapes: B clips, M tokens, F width of the tower's features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from tgm_scale.runtime.precision import without_autocast


def feature_error(learned_BMF: Tensor, tower_BMF: Tensor) -> Tensor:
    """Return the squared distance of the two at unit length, 2 - 2 cosine, averaged over each clip's tokens: float32
    [B], 0 to 4.

    Computed in float32 regardless of autocast."""
    with without_autocast(learned_BMF.device):
        learned_BMF, tower_BMF = (F.normalize(x.float(), dim=-1) for x in (learned_BMF, tower_BMF))
        return (learned_BMF - tower_BMF).square().sum(-1).mean(1)
