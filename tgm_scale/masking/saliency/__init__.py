"""Saliency sources by name: what a recipe may be mixed from. A new source is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tgm_scale.contracts import Grid
from tgm_scale.masking.saliency import guided, noise


@dataclass(frozen=True)
class Source:
    """`score(seeds_B, grid, aux)` -> float32 [B, S, R, C], higher = more salient, of any range.

    `needs` names the maps of the batch that must be in `aux`, each float [B, S, R, C]. What is random about a score
    is keyed by the sample's seed."""

    score: Callable[[Tensor, Grid, Mapping[str, Tensor]], Tensor]
    needs: frozenset[str] = frozenset()


SOURCES: dict[str, Source] = {
    "random": Source(noise.per_token),
    "frame": Source(noise.per_slot),
    "block": Source(noise.cuboids),
    "text": Source(guided.relevance, frozenset({"relevance"})),
    "motion": Source(guided.motion, frozenset({"motion"})),
}
