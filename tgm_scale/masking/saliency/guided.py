"""Saliency that the batch brings: float32 [B, S, R, C]."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from tgm_scale.contracts import Grid


def relevance(seeds_B: Tensor, grid: Grid, aux: Mapping[str, Tensor]) -> Tensor:
    """How well each patch answers to the caption: text-guided masking (arXiv 2408.00759)."""
    return aux["relevance"].float()


def motion(seeds_B: Tensor, grid: Grid, aux: Mapping[str, Tensor]) -> Tensor:
    """How fast each patch moves, from the codec's motion vectors (motion-guided masking, arXiv 2308.12962)."""
    return aux["motion"].float()
