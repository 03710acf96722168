"""Table of the terms, in the order in which they are summed; docs/OBJECTIVES.md describes each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tgm_scale.objectives.adversary import Adversary
from tgm_scale.objectives.align import Align
from tgm_scale.objectives.contrastive import InfoNCE
from tgm_scale.objectives.differences import Differences
from tgm_scale.objectives.nearest import Nearest
from tgm_scale.objectives.policy import Policy
from tgm_scale.objectives.predict import Predict
from tgm_scale.objectives.reconstruction import Pixels
from tgm_scale.objectives.sigmoid import Sigmoid
from tgm_scale.objectives.term import ClipTerm, CoupledTerm, TermSettings

TERMS: dict[str, type[ClipTerm] | type[CoupledTerm]] = {
    "pixels": Pixels,
    "differences": Differences,
    "align": Align,
    "predict": Predict,
    "contrast": InfoNCE,
    "sigmoid": Sigmoid,
    "nearest": Nearest,
    "policy": Policy,
    "adversary": Adversary,
}


def column(name: str) -> str:
    """Return the column of a term's value in metrics.jsonl."""
    return TERMS[name].column or f"loss_{name}"


def needs_of(names: Mapping[str, float]) -> frozenset[str]:
    """Return what the terms need together."""
    return frozenset().union(*(TERMS[name].needs for name in names))


@dataclass(frozen=True)
class Objective:
    """The terms of a run, built in the table's order, with their weights."""

    weights: dict[str, float]  # above 0
    clip: dict[str, ClipTerm]
    coupled: dict[str, CoupledTerm]
    contrastive_batch: int | None = None  # clips of a group; None: the global batch

    @classmethod
    def of(
        cls, weights: Mapping[str, float], settings: TermSettings, contrastive_batch: int | None = None
    ) -> Objective:
        """Build the terms. weights: above 0, of terms in the table."""
        built = {name: term(settings) for name, term in TERMS.items() if name in weights}
        return cls(
            {name: weights[name] for name in built},
            {name: term for name, term in built.items() if isinstance(term, ClipTerm)},
            {name: term for name, term in built.items() if isinstance(term, CoupledTerm)},
            contrastive_batch,
        )

    @property
    def needs(self) -> frozenset[str]:
        return needs_of(self.weights)
