"""Configuration section on the objective: the weights of its terms, and their shared settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tgm_scale.config.data_sections import Section

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ObjectiveConfig(Section):
    """Objective. If `terms` is given, the factors of `pixels` and `contrast` are set from it, so that both agree."""

    terms: dict[str, Weight] | None = Field(
        None,
        description="factor of each term by name, a row of the table in docs/OBJECTIVES.md; default: pixels and "
        "contrast, by the next two keys",
    )
    reconstruction_weight: float = Field(1.0, ge=0, description="factor of the term pixels (MSE); 0: none")
    contrastive_weight: float = Field(1.0, ge=0, description="factor of the term contrast (InfoNCE); 0: none")
    contrastive_batch: int | None = Field(
        None, ge=2, description="clips that are each other's negatives; default: the global batch"
    )
    queue: int = Field(4096, ge=1, description="captions of earlier steps among which the term nearest looks")
    normalise_by: Literal["patch", "clip"] = Field(
        "patch",
        description="pixels to reconstruct, by the mean and deviation of their patch (VideoMAE) or of the clip",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_weight_of_a_term(cls, given: Any) -> Any:
        """Set the two older keys from `terms`; raise ValueError where they differ."""
        if not isinstance(given, dict) or not isinstance(terms := given.get("terms"), dict):
            return given
        filled = dict(given)
        for key, term in _KEYS.items():
            weight = terms.get(term, 0.0)
            if key in given and given[key] != weight:
                raise ValueError(
                    f"objective.{key}={given[key]} and objective.terms={_flow(terms)} are two weights of {term}: "
                    f"leave one of the keys out, or set objective.{key}={weight}"
                )
            # otherwise only `terms` is reported as invalid
            filled[key] = weight if type(weight) in (int, float) and 0 <= weight < float("inf") else 0.0
        return filled

    def weights(self) -> dict[str, float]:
        """Return the factor of each term with one above 0."""
        terms = {term: getattr(self, key) for key, term in _KEYS.items()} if self.terms is None else self.terms
        return {name: weight for name, weight in terms.items() if weight}

    def in_words(self) -> str:
        """Return a text such as 1 pixels + 0.1 sigmoid."""
        return " + ".join(f"{weight:g} {name}" for name, weight in self.weights().items())

    def in_yaml(self) -> str:
        """Return the terms in YAML notation."""
        return _flow(self.terms or {})

    def key(self, term: str) -> str:
        """Return the key that sets a term's weight."""
        older = next((key for key, name in _KEYS.items() if name == term and self.terms is None), None)
        return f"objective.{older or f'terms.{term}'}"

    def without(self, left_out: Collection[str]) -> list[str]:
        """Return the overrides, for a message, that leave only the other terms."""
        if not set(left_out) & self.weights().keys():
            return []
        rest = {name: weight for name, weight in self.weights().items() if name not in left_out} or {"pixels": 1}
        if self.terms is not None:
            return [f"'objective.terms={_flow(rest)}'"]
        keys = [f"objective.{key}=0" for key, term in _KEYS.items() if term in left_out and getattr(self, key)]
        return keys if self.reconstruction_weight else [*keys, "objective.reconstruction_weight=1"]


_KEYS = {"reconstruction_weight": "pixels", "contrastive_weight": "contrast"}  # older than the table of terms


def _flow(terms: dict[str, float]) -> str:
    """Return terms in YAML notation."""
    shown = (f"{weight:g}" if isinstance(weight, float) else str(weight) for weight in terms.values())
    return "{" + ", ".join(f"{name}: {weight}" for name, weight in zip(terms, shown)) + "}"
