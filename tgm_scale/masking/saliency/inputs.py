"""What a saliency source computes its scores from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tgm_scale.contracts import Grid


@dataclass(frozen=True)
class SaliencyInputs:
    """The clips of a batch: their seeds, and the maps that came with them, by name."""

    seeds_B: Tensor  # int64
    grid: Grid
    maps: Mapping[str, Tensor]  # each float [B, S, R, C], but for flow: see saliency.tracked
    visible_share: float  # of a clip's tokens that the mask will not hide
