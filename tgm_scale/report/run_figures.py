"""Panels of the metrics in metrics.jsonl that a report draws, with their descriptions."""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from tgm_scale.masking.diagnostics import ALARM
from tgm_scale.report.chart import Curve, Panel, classes, percent, short
from tgm_scale.report.run_view import SHARES, RunView
from tgm_scale.report.thinning import Series

_RECENT = 100  # values averaged for a mean at the end


@dataclass(frozen=True)
class Figure:
    """Description of a metric.

    name: its column. says: what it is. only: condition under which a run has it. chance: whether its panel shows
    chance."""

    name: str
    title: str
    says: str = ""
    only: str = ""
    share: bool = False
    chance: bool = False
    from_zero: bool = False


def _of_terms() -> list[Figure]:
    """Return metrics of terms that few runs use (docs/OBJECTIVES.md); their absence is not reported."""
    accuracy = "Share of the clips whose own caption is the nearest."
    return [
        Figure("loss_differences", "Differences", "Squared error of the hidden patches' change from frame to frame."),
        Figure("loss_align", "Align", "Visible tokens to the image tower's features: squared distance, 0 to 4."),
        Figure("loss_predict", "Predict", "Predicted to the image tower's features: squared distance, 0 to 4."),
        Figure("loss_sigmoid", "Sigmoid", "SigLIP's loss between clips and captions."),
        Figure("sigmoid_accuracy", "Sigmoid: nearest is right", accuracy, share=True, from_zero=True),
        Figure("sigmoid_scale", "Sigmoid: scale", "Learned."),
        Figure("sigmoid_bias", "Sigmoid: bias", "Learned."),
        Figure("loss_nearest", "Nearest", "InfoNCE between clips and the nearest captions of the queue."),
        Figure("nearest_accuracy", "Nearest: right", "Share of the clips nearest to their caption of the queue.",
               share=True, from_zero=True),
        Figure("loss_policy", "Policy", "For a learned mask: error of hidden tokens, by minus their log probability."),
        Figure("loss_adversary", "Adversary", "For a learned mask: minus the error of hidden tokens, by softmax."),
    ]  # fmt: skip


GROUPS: dict[str, list[Figure]] = {
    "Objective": [
        Figure("loss", "Loss", "The weighted sum of its terms."),
        Figure("loss_reconstruction", "Reconstruction", "Term pixels: mean squared error of the hidden patches.",
               "with the term pixels"),
        Figure("loss_contrastive", "Contrast", "InfoNCE between clips and captions.", "with the term contrast"),
        Figure("contrastive_accuracy", "Contrast: nearest is right",
               "Share of the clips whose own caption is the nearest.", "with the term contrast",
               share=True, from_zero=True),
        Figure("temperature", "Temperature", "Of the contrast.", "with the term contrast"),
        *_of_terms(),
    ],
    "Optimisation": [
        Figure("learning_rate", "Learning rate", from_zero=True),
        Figure("grad_norm", "Gradient norm", "Before clipping."),
    ],
    "Speed": [
        Figure("clips_per_second", "Throughput", "Clips a second, all processes together.", from_zero=True),
        Figure("step_seconds", "Seconds a step", from_zero=True),
        Figure("data_share", "Waiting for data", "Share of the step, main process.", share=True, from_zero=True),
        Figure("guidance_share", "Guidance", "Share of the step that the frozen models take.",
               "where masks or the contrast ask frozen models", share=True, from_zero=True),
        Figure("mfu", "Model FLOP utilisation", "Share of the GPU's dense bf16 peak.",
               "on a GPU whose peak is known", share=True, from_zero=True),
        Figure("device_memory_gb", "GPU memory", "GB, the most so far, main process.", "on a GPU", from_zero=True),
    ],
    "Data": [Figure("skipped_samples", "Skipped samples", "Broken ones so far, of weight 0.", from_zero=True)],
    "Guidance": [
        Figure("mask_swapped_overlap", "Overlap with swapped captions",
               "Share of the hidden tokens that another clip's caption hides, too. Dashed: chance.",
               "where masks follow captions", share=True, chance=True),
        Figure("mask_centre_overlap", "Overlap with a centre box",
               "Share of the hidden tokens within a box of the same size. Dashed: chance.",
               "where masks follow captions", share=True, chance=True),
        Figure("mask_slot_repeat", "Slot repeat",
               "Share of the hidden tokens that were hidden in the slot before. Dashed: chance.",
               "where masks follow captions", share=True, chance=True),
        Figure("mask_without_motion", "Clips without motion", "Their share; their boxes fall at random.",
               "with masking.recipe=motion_guided", share=True, from_zero=True),
    ],
    "While it trains": [
        Figure("knn_accuracy", "kNN accuracy", "Nearest neighbours on the labelled clips of knn.*.",
               "with knn.every", share=True),
    ],
}  # fmt: skip
_OPTIONAL = {one.name for one in _of_terms()}
_KNOWN = {one.name for group in GROUPS.values() for one in group} | {"samples", *SHARES}


def groups(views: Sequence[RunView]) -> dict[str, list[Figure]]:
    """Return GROUPS with unknown columns added: those of terms under the objective, all others by themselves."""
    unknown = sorted({name for view in views for name in view.columns} - _KNOWN)
    named = [view.tree.get("objective", {}).get("terms") for view in views]
    terms = {str(name) for one in named if isinstance(one, dict) for name in one}
    of_terms = {column: term for column in unknown if (term := _term_of(column, terms))}
    added = [
        Figure(column, column.removeprefix("loss_").replace("_", " ").capitalize(), f"Term {term}: {column}.")
        for column, term in of_terms.items()
    ]
    return {
        **GROUPS,
        "Objective": [*GROUPS["Objective"], *added],
        "Other columns": [Figure(name, name) for name in unknown if name not in of_terms],
    }


def _term_of(column: str, terms: Collection[str]) -> str:
    """Return the term of a column in metrics.jsonl: loss_TERM, or TERM_FIGURE if the run names it; "" if none."""
    if column.startswith("loss_"):
        return column.removeprefix("loss_")
    return next((term for term in terms if column.startswith(f"{term}_")), "")


def hidden_share(view: RunView) -> float | None:
    """Return the share of tokens that the run's masks hide, the chance level of their overlaps."""
    visible, target = (view.plan.get(name) for name in ("visible_tokens", "target_tokens"))
    whole = view.tree.get("model", {}).get("decode_ratio", 1.0) == 1.0
    if whole and type(visible) is int and type(target) is int and visible + target > 0:
        return target / (visible + target)
    masking = view.tree.get("masking", {})
    ratio, seen = (masking.get(name) for name in ("mask_ratio", "visible_ratio"))
    share = 1 - seen if isinstance(seen, (int, float)) else ratio
    return float(share) if isinstance(share, (int, float)) and 0 < share < 1 else None


def panel(one: Figure, views: Sequence[RunView]) -> str:
    """Return the HTML of a metric's panel, "" if no run has it."""
    if not any(one.name in view.columns for view in views):
        return ""
    marked = one.name in ("loss", "grad_norm")
    curves = [
        Curve(
            view.columns[one.name],
            number,
            [start["step"] + 0.5 for start in view.starts if start["step"]],
            sorted(step for steps in view.refusals().values() for step in steps) if marked else (),
        )
        for number, view in enumerate(views)
        if one.name in view.columns
    ]
    shares = sorted({share for view in views if (share := hidden_share(view))}) if one.chance else []
    drawn = Panel(curves, shares, percent if one.share else short, one.from_zero)
    axes = drawn.axes()
    says = one.says + (" Logarithmic axis." if axes is not None and axes.log else "")
    ends = "".join(
        f"<p class='ends'>{_swatch(curve.colour) if len(views) > 1 else ''}{_ends(curve.series, drawn.words)}</p>"
        for curve in curves
    )
    title = html.escape(one.title)
    return f"<div class='panel'><h3>{title}</h3><p>{html.escape(says)}</p>{drawn.svg(title)}{ends}</div>"


def lacking(views: Sequence[RunView], figures: Sequence[Figure]) -> list[str]:
    """Return sentences on the metrics that no run has."""
    gone = [one for one in figures if not any(one.name in view.columns for view in views)]
    some = [f"{one.title} (only {one.only})" for one in gone if one.only]
    always = [one.title for one in gone if not one.only and one.name not in _OPTIONAL]
    said = [f"Not there: {'; '.join(some)}."] if some else []
    if always:
        said.append(f"Missing from metrics.jsonl: {'; '.join(always)}: another version wrote it, or it is damaged.")
    return said


def guidance_sentences(view: RunView) -> list[str]:
    """Return what the overlaps of the newest steps mean, against chance."""
    chance = hidden_share(view)
    if chance is None:
        return []
    said = []
    for name, low, high in (
        ("mask_swapped_overlap", "the captions change the masks",
         "the captions hardly change the masks: the run is not text-guided; look at the captions, guidance.towers and "
         "guidance.scorer"),
        ("mask_centre_overlap", "the masks are no box in the centre",
         "the masks are little else than a box in the centre; look at guidance.towers and guidance.scorer"),
    ):  # fmt: skip
        if name in view.columns and len(values := view.columns[name].finite.values[-_RECENT:]):
            mean = float(values.mean())
            way = (mean - chance) / (1 - chance)
            verdict = high if way > ALARM else low
            title = next(one.title for one in GROUPS["Guidance"] if one.name == name)
            said.append(
                f"{title}, last {len(values)} steps: {percent(mean)}, chance {percent(chance)}, equal masks 100%: "
                f"{verdict}."
            )
    return said


def legend(views: Sequence[RunView]) -> str:
    names = "".join(f"<span>{_swatch(number)}{html.escape(view.name)}</span>" for number, view in enumerate(views))
    return f"<div class='legend'>{names}</div>"


def _swatch(number: int) -> str:
    return f"<i class='swatch {classes(number)}'></i> "


def _ends(series: Series, words: Callable[[float], str]) -> str:
    finite = series.finite
    lost = len(series) - len(finite)
    note = f"; {lost} not finite" if lost else ""
    if not len(finite):
        return note.removeprefix("; ")
    low, high = int(np.argmin(finite.values)), int(np.argmax(finite.values))
    last = f"{words(finite.values[-1])} at step {int(finite.steps[-1])}"
    if low == high or finite.values[low] == finite.values[high]:
        return last + note
    least, most = (f"{words(finite.values[at])} (step {int(finite.steps[at])})" for at in (low, high))
    return f"{last}; from {least} to {most}{note}"
