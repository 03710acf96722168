"""Metrics of the demo compared with expectations.

The summary is plain JSON with stable names, since scripts and tests read them:
loss.{first,last}; mask.{object,distractor,same_colour,same_shape,random,absent_caption}_hidden, mask.of_the_runs;
relevance_auc.{raw,value,vv,colour_control,absent_caption}; for each label of motion, shape and colour
probe.LABEL.{joint,mae,random}.{mean,std}; knn.LABEL.{joint,mae,random}; gain.LABEL.{joint,mae}.{mean,low,high} and
chance.LABEL; export.max_difference; seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Summary = dict[str, Any]


@dataclass(frozen=True)
class Expectation:
    """Expected bounds of a metric."""

    text: str
    metric: str | Callable[[Summary], float]  # a dotted path, or a function that computes it
    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None

    @property
    def wanted(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        bounds = {"at least": self.at_least, "at most": self.at_most, "above": self.above}
        return " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)

    def measured(self, summary: Summary) -> Finding:
        value = at(summary, self.metric) if isinstance(self.metric, str) else self.metric(summary)
        met = self.at_least is None or value >= self.at_least
        met = met and (self.at_most is None or value <= self.at_most) and (self.above is None or value > self.above)
        return Finding(self.text, value, self.wanted, met)


@dataclass(frozen=True)
class Finding:
    """Metric with its expectation, and whether it is met."""

    text: str
    found: float
    wanted: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'NOT MET':>7}  {self.text}: {self.found:.3g} (wanted {self.wanted})"


def at(summary: Summary, path: str) -> float:
    """Return the figure at a dotted path."""
    value: Any = summary
    for part in path.split("."):
        value = value[part]
    return float(value)


EXPECTATIONS = (
    Expectation("share of the named object's tokens that is hidden", "mask.object_hidden", at_least=0.90),
    Expectation(
        "the same in the runs' own masks, which are partly noise", "mask.of_the_runs.object_hidden", at_least=0.90
    ),
    Expectation("share of the distractors' tokens that is hidden", "mask.distractor_hidden", at_most=0.75),
    Expectation(
        "object hidden more often than the distractor of its colour, by",
        lambda s: at(s, "mask.object_hidden") - at(s, "mask.same_colour_hidden"),
        at_least=0.1,
    ),
    Expectation("AUC of relevance for the named object's tokens", "relevance_auc.raw", at_least=0.85),
    Expectation(
        "the same under a caption of an absent object", "relevance_auc.absent_caption", at_least=0.45, at_most=0.55
    ),
    Expectation(
        "same-colour distractor hidden less often than by colour distance, by",
        lambda s: at(s, "mask.colour_control_same_colour_hidden") - at(s, "mask.same_colour_hidden"),
        above=0,
    ),
    Expectation(
        "reconstruction loss, its last by its first value",
        lambda s: at(s, "loss.last") / at(s, "loss.first"),
        at_most=0.8,
    ),
    Expectation(
        "motion probe, joint less random initialisation, lower end of the 95 % interval",
        "gain.motion.joint.low",
        above=0,
    ),
    Expectation(
        "motion probe, MAE alone less random initialisation, lower end of the 95 % interval",
        "gain.motion.mae.low",
        above=0,
    ),
    Expectation("export: largest difference of predictions in transformers", "export.max_difference", at_most=1e-4),
)


def check_expectations(summary: Summary) -> list[Finding]:
    """Return every expectation with its measured value. Raises KeyError for a summary that lacks a metric."""
    return [expectation.measured(summary) for expectation in EXPECTATIONS]
