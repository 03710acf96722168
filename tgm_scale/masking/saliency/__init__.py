"""Saliency sources by name: what a recipe may be mixed from. A new source is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tgm_scale.masking.saliency import guided, noise, tracked
from tgm_scale.masking.saliency.inputs import SaliencyInputs

__all__ = ["SOURCES", "SaliencyInputs", "Source"]


@dataclass(frozen=True)
class Source:
    """`score(inputs)` -> float32 [B, S, R, C], higher = more salient, of any range.

    `needs` names the maps of the batch that must be in `inputs.maps`. What is random about a score is keyed by the
    sample's seed."""

    score: Callable[[SaliencyInputs], Tensor]
    needs: frozenset[str] = frozenset()


SOURCES: dict[str, Source] = {
    "random": Source(noise.per_token),
    "frame": Source(noise.per_slot),
    "block": Source(noise.cuboids),
    "text": Source(guided.relevance, frozenset({"relevance"})),
    "motion": Source(guided.motion, frozenset({"motion"})),
    "attention": Source(guided.attention, frozenset({"attention"})),
    "parts": Source(guided.parts, frozenset({"parts"})),
    "flow": Source(tracked.mixture, frozenset({"flow"})),
}
