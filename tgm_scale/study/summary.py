"""The figures of a study: means and deviations over seeds, and paired differences between arms with intervals.

Shapes: S seeds, M test clips.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch

from tgm_scale.config import StudyConfig
from tgm_scale.data.lists.text import shown
from tgm_scale.evaluation.intervals import paired_interval
from tgm_scale.evaluation.results import FEW, few_clips
from tgm_scale.evaluation.settings import FinetuneConfig, FrozenConfig
from tgm_scale.runs.figures import shares
from tgm_scale.runtime.outside.json_text import json_lines, json_object
from tgm_scale.study import records
from tgm_scale.study.arms import Arm, Job, Unit, arms

Tree = dict[str, Any]
_FEW_SEEDS = 3
_MAIN = ("top1", "video to text R@1")  # the figure that predictions.jsonl holds clip by clip


_Key = tuple[Arm, int]


class Outcome(NamedTuple):
    """Of an evaluation of one run. right: whether each test clip is; groups: of the clips that have one; truths: the
    label or caption of each; data: a digest of each part's clips and labels, none in older results."""

    figures: dict[str, float]
    right: dict[str, bool]
    groups: dict[str, str]
    truths: dict[str, str]
    data: dict[str, str]


def outcome(job: Job) -> Outcome:
    """Raises ValueError for files that are damaged."""
    results, rows = (job.folder / name for name in records.FIGURES)
    try:
        tree, lines = json_object(results), json_lines(rows)
        figures = shares(tree)
        if any(type(value) is not str for row in lines for value in row.values()):
            raise ValueError(f"a line of {rows.name} holds what is no text")
        truth = "caption" if tree["method"] == "retrieval" else "label"
        right = [row[truth] == row["prediction"] for row in lines]
        _refuse_another_top1(figures, right)
        return Outcome(
            figures,
            {row["key"]: is_right for row, is_right in zip(lines, right)},
            {row["key"]: row["group"] for row in lines if "group" in row},
            {row["key"]: row[truth] for row in lines},
            {of["part"]: of["content"] for of in tree.get("data", []) if of.get("content")},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__} {error} in it"
        raise ValueError(
            f"{results} or {rows.name} is damaged ({why}): remove it, and the same study measures again"
        ) from None


def _refuse_another_top1(figures: dict[str, float], right: Sequence[bool]) -> None:
    """Raises ValueError where top1 is not that of the predictions beside it. R@1 of a retrieval need not be: captions
    of equal tokens are one answer."""
    share = sum(right) / max(len(right), 1)
    if not math.isclose(figures.get("top1", share), share, abs_tol=1e-6):
        raise ValueError(f"top1 is {figures['top1']:.6g}, and {share:.6g} of {len(right)} predictions are right")


def summarise(study: StudyConfig, units: Sequence[Unit], left_out: Sequence[Unit]) -> Tree:
    """left_out: units for which there was no time. `damaged` names evaluations whose files are."""
    every = [job for unit in units for job in unit.jobs]
    late = {(unit.arm, unit.seed) for unit in left_out}
    trouble = {(job.arm, job.seed): _trouble(job) for job in reversed(every) if _trouble(job)}
    found: Tree = {}
    broken: list[str] = []
    for name in study.study.evaluations:
        jobs = [job for job in every if job.what == name]
        outcomes, damaged = _outcomes(job for job in jobs if records.is_done(job))
        missing = {
            (job.arm, job.seed): damaged.get((job.arm, job.seed))
            or _trouble(job)
            or trouble.get((job.arm, job.seed))
            or ("left out: no time" if (job.arm, job.seed) in late else "not done yet")
            for job in jobs
            if (job.arm, job.seed) not in outcomes
        }
        found[name] = _evaluation(study, outcomes, missing)
        broken += damaged.values()
    seconds = sum(record.seconds for job in every if (record := records.read(job)) is not None)
    return {"evaluations": found, "seeds": study.study.seeds, "seconds": seconds, "damaged": broken}


def _outcomes(jobs: Iterable[Job]) -> tuple[dict[_Key, Outcome], dict[_Key, str]]:
    """By arm and seed; and why there is none. What was measured on other data than the newest is none."""
    found: dict[_Key, Outcome] = {}
    damaged: dict[_Key, str] = {}
    newest: list[tuple[Job, Outcome]] = []  # of all, and of each seed
    for job in sorted(jobs, key=lambda job: -(job.folder / records.FIGURES[0]).stat().st_mtime_ns):
        key = job.arm, job.seed
        try:
            of = outcome(job)
        except ValueError as error:
            damaged[key] = str(error)
            continue
        if other := next((said for before in newest if (said := _other_data(job, of, *before))), ""):
            damaged[key] = other
            continue
        found[key] = of
        if all(before.seed != job.seed for before, _ in newest):
            newest.append((job, of))
    return found, damaged


def _other_data(job: Job, of: Outcome, newer_job: Job, newer: Outcome) -> str:
    """In words, how an outcome's data are others than those of a newer one; "" where they are the same, as far as is
    known."""
    said = ""
    if clips := [clip for clip, truth in of.truths.items() if newer.truths.get(clip, truth) != truth]:
        there, here = (shown(one.truths[clips[0]]) for one in (of, newer))
        said = f"{len(clips)} test clips had another label, such as {clips[0]}: {there} there, {here} now"
    elif parts := [part for part in ("train", "test") if _differ(part, job, of, newer_job, newer)]:
        said = f"the clips, labels or groups of data.{' and data.'.join(parts)} were others"
    if not said:
        return ""
    return (
        f"{job.folder} was measured on other data than {newer_job.folder}: {said}: remove {job.folder}, and the same "
        "study measures again"
    )


def _differ(part: str, job: Job, of: Outcome, newer_job: Job, newer: Outcome) -> bool:
    """A share of the training labels is of the seed."""
    assert isinstance(job.config, (FrozenConfig, FinetuneConfig))
    drawn = part == "train" and job.config.data.share < 1 and job.seed != newer_job.seed
    return not drawn and part in of.data and of.data[part] != newer.data.get(part, of.data[part])


def _trouble(job: Job) -> str:
    found = records.read(job)
    return f"{job.what}: {found.why}" if found is not None and found.state == records.FAILED else ""


def _evaluation(study: StudyConfig, outcomes: dict[_Key, Outcome], missing: dict[_Key, str]) -> Tree:
    of_arms: Tree = {}
    figure = next((name for name in _MAIN if any(name in one.figures for one in outcomes.values())), _MAIN[0])
    for arm in arms(study):
        seeds = [seed for seed in study.study.seeds if (arm, seed) in outcomes]
        why = {str(seed): missing[arm, seed] for seed in study.study.seeds if (arm, seed) in missing}
        if not seeds and not why:
            continue  # a retrieval by an arm without captions
        figures: dict[str, list[float]] = {}
        for seed in seeds:
            for name, value in outcomes[arm, seed].figures.items():
                figures.setdefault(name, []).append(value)
        of_arms[arm.name] = {
            "seeds": seeds,
            "figures": {name: _spread(values) for name, values in figures.items()},
            "differences": {
                named: {"from": other.name, **found}
                for named, other in others(study, arm).items()
                if (found := difference(outcomes, arm, other, study.run.seed))
            },
            "missing": why,
        }
    return {"figure": figure, "arms": of_arms, "basis": _basis(outcomes, figure)}


def _basis(outcomes: dict[_Key, Outcome], figure: str) -> str:
    """In words, how many seeds and test clips the figures of an evaluation are of, and a caution where these are few.
    Of arms that have not the same, the fewest and the most."""
    if not outcomes:
        return ""
    seeds = list(Counter(arm for arm, _ in outcomes).values())
    clips = [len(one.right) for one in outcomes.values()]
    groups = [len(set(one.groups.values())) for one in outcomes.values() if len(one.groups) == len(one.right)]
    said = f"seeds: {_span(seeds)}; test clips: {_span(clips)}" + (f" of {_span(groups)} groups" if groups else "")
    if 0 < min(clips) < FEW:
        said += f"; few test clips: {few_clips(min(clips), figure)}"
    if min(seeds) == 1:
        said += "; one seed: an interval is over clips alone, and another may differ"
    elif min(seeds) <= _FEW_SEEDS:
        said += f"; few seeds: {min(seeds)}: an interval over so few is rough, and somewhat too narrow"
    return said


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _spread(values: list[float]) -> Tree:
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None, "of each": values}


def others(study: StudyConfig, arm: Arm) -> dict[str, Arm]:
    """What an arm is compared with, by the name of a column: the first objective under its masker, the first masker
    under its objective, and the weights that the runs start from."""
    if not arm.masker:
        return {}
    first = Arm(next(iter(study.study.maskers)), next(iter(study.study.objectives)))
    found = {
        f"objective {first.objective}": Arm(arm.masker, first.objective),
        f"masker {first.masker}": Arm(first.masker, arm.objective),
        **({Arm().name: Arm()} if study.study.untrained else {}),
    }
    return {named: other for named, other in found.items() if other != arm}


def difference(outcomes: dict[_Key, Outcome], arm: Arm, other: Arm, seed: int) -> Tree:
    """Of the main figure, over the seeds and clips that both have, with a 95 % interval over seeds and clips, and over
    seeds and groups where the clips have groups; empty where they share no seed. seed: of the draws."""
    seeds = [number for one, number in outcomes if one == arm and (other, number) in outcomes]
    pairs = [(outcomes[arm, number], outcomes[other, number]) for number in seeds]
    shared = [one.right.keys() & beside.right.keys() for one, beside in pairs]
    clips = sorted(set.intersection(*map(set, shared))) if shared else []
    if not clips:
        return {}
    gain_SM = torch.tensor(
        [[one.right[clip] - beside.right[clip] for clip in clips] for one, beside in pairs], dtype=torch.float64
    )
    found: Tree = {"seeds": seeds, "clips": len(clips), **paired_interval(gain_SM, seed=seed)._asdict()}
    groups = [group for clip in clips if (group := pairs[0][0].groups.get(clip))]
    if len(groups) == len(clips) and len(set(groups)) > 1:
        over = paired_interval(gain_SM, seed=seed, groups=groups)
        found["over groups"] = {"groups": len(set(groups)), **over._asdict()}
    return found


def interval(found: Tree) -> str:
    text = f"{found['mean']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
    if over := found.get("over groups"):
        text += f"; over {over['groups']} groups [{over['low']:+.3f}, {over['high']:+.3f}]"
    return text


def rows(evaluation: Tree) -> list[list[str]]:
    """A heading, and the cells of each arm, in words."""
    compared = {one for of in evaluation["arms"].values() for one in of["differences"]}
    named = sorted(compared, key=lambda one: ("objective", "masker", Arm().name).index(one.partition(" ")[0]))
    found = [["arm", "mean ± deviation", "of each seed", *(f"difference from {column}, 95 %" for column in named)]]
    for name, of in evaluation["arms"].items():
        spread, why = of["figures"].get(evaluation["figure"]), list(of["missing"].items())
        each = [f"{value:.3f}" for value in spread["of each"]] if spread else []
        said = [f"seed {seed}: {reason}" for seed, reason in (why if spread else why[:1])]
        mean = "none" if spread is None else f"{spread['mean']:.3f}"
        if spread and spread["deviation"] is not None:
            mean += f" ± {spread['deviation']:.3f}"
        differences = [interval(of["differences"][one]) if one in of["differences"] else "" for one in named]
        found.append([name, mean, "; ".join([" ".join(each), *said] if each else said), *differences])
    return found


def tables(summary: Tree) -> str:
    """One table for each evaluation, as Markdown."""
    parts = []
    for name, evaluation in summary["evaluations"].items():
        head, *below = [[cell.replace("|", "/") for cell in cells] for cells in rows(evaluation)]
        lines = [head, ["---"] * len(head), *below]
        parts += [f"{name}: {evaluation['figure']}\n", *(f"| {' | '.join(cells)} |" for cells in lines), ""]
        parts += [evaluation["basis"], ""] if evaluation["basis"] else []
    return "\n".join(parts)
