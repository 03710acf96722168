"""The demo's figures against what is wanted of them.

The summary is plain JSON; its names are kept, since scripts and tests read them:
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
class Floor:
    """One thing that is wanted of the figures."""

    text: str
    figure: Callable[[Summary], float]
    wanted: str
    met_by: Callable[[Summary, float], bool]


@dataclass(frozen=True)
class Finding:
    """A figure, what was wanted of it, and whether it is so."""

    text: str
    found: float
    wanted: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'NOT MET':>7}  {self.text}: {self.found:.3g} (wanted {self.wanted})"


def at(summary: Summary, path: str) -> float:
    """The figure at a dotted path."""
    value: Any = summary
    for part in path.split("."):
        value = value[part]
    return float(value)


def _at_least(text: str, path: str, bound: float) -> Floor:
    return Floor(text, lambda s: at(s, path), f"at least {bound:g}", lambda s, x: x >= bound)


def _at_most(text: str, path: str, bound: float) -> Floor:
    return Floor(text, lambda s: at(s, path), f"at most {bound:g}", lambda s, x: x <= bound)


def _gain(text: str, path: str) -> Floor:
    return Floor(text, lambda s: at(s, f"{path}.low"), "above 0", lambda s, x: x > 0)


FLOORS = (
    _at_least("share of the named object's tokens that is hidden", "mask.object_hidden", 0.90),
    _at_least("the same in the runs' own masks, which are partly noise", "mask.of_the_runs.object_hidden", 0.90),
    _at_most("share of the distractors' tokens that is hidden", "mask.distractor_hidden", 0.75),
    Floor(
        "object hidden more often than the distractor of its colour, by",
        lambda s: at(s, "mask.object_hidden") - at(s, "mask.same_colour_hidden"),
        "at least 0.1",
        lambda s, x: x >= 0.10,
    ),
    _at_least("AUC of relevance for the named object's tokens", "relevance_auc.raw", 0.85),
    Floor(
        "the same under a caption of an absent object",
        lambda s: at(s, "relevance_auc.absent_caption"),
        "0.45 to 0.55",
        lambda s, x: 0.45 <= x <= 0.55,
    ),
    Floor(
        "same-colour distractor hidden less often than by colour distance, by",
        lambda s: at(s, "mask.colour_control_same_colour_hidden") - at(s, "mask.same_colour_hidden"),
        "above 0",
        lambda s, x: x > 0,
    ),
    Floor(
        "reconstruction loss, its last by its first value",
        lambda s: at(s, "loss.last") / at(s, "loss.first"),
        "at most 0.8",
        lambda s, x: x <= 0.8,
    ),
    _gain("motion probe, joint less random initialisation, lower end of the 95 % interval", "gain.motion.joint"),
    _gain("motion probe, MAE alone less random initialisation, lower end of the 95 % interval", "gain.motion.mae"),
    _at_most("export: largest difference of predictions in transformers", "export.max_difference", 1e-4),
)


def check_expectations(summary: Summary) -> list[Finding]:
    """Every floor with what was found. Raises KeyError for a summary that lacks a figure."""
    findings = []
    for floor in FLOORS:
        found = floor.figure(summary)
        findings.append(Finding(floor.text, found, floor.wanted, floor.met_by(summary, found)))
    return findings
