"""Metrics of a study: means and deviations over seeds, and paired differences between arms with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from tgm_scale.config import StudyConfig
from tgm_scale.evaluation.results import FEW, FEW_GROUPS, few_clips, few_groups
from tgm_scale.study import records
from tgm_scale.study.arms import Arm, Job, Unit, arms
from tgm_scale.study.differences import difference, effects, interval, others
from tgm_scale.study.outcomes import Key, Outcome, outcomes

Tree = dict[str, Any]
_FEW_SEEDS = 3
_MAIN = ("top1", "video to text R@1")  # metric for which predictions.jsonl has a value per clip


def summarise(study: StudyConfig, units: Sequence[Unit], left_out: Sequence[Unit]) -> Tree:
    """Summarise the study's results. left_out: units without time; `damaged` lists problems of damaged results."""
    every = [job for unit in units for job in unit.jobs]
    late = {(unit.arm, unit.seed) for unit in left_out}
    trouble = {(job.arm, job.seed): _trouble(job) for job in reversed(every) if _trouble(job)}
    found: Tree = {}
    broken: list[str] = []
    for name in study.study.evaluations:
        jobs = [job for job in every if job.what == name]
        found_of, damaged = outcomes(job for job in jobs if records.is_done(job))
        missing = {
            (job.arm, job.seed): damaged.get((job.arm, job.seed))
            or _trouble(job)
            or trouble.get((job.arm, job.seed))
            or ("left out: no time" if (job.arm, job.seed) in late else "not done yet")
            for job in jobs
            if (job.arm, job.seed) not in found_of
        }
        found[name] = _evaluation(study, found_of, missing)
        broken += damaged.values()
    seconds = sum(record.seconds for job in every if (record := records.read(job)) is not None)
    return {"evaluations": found, "seeds": study.study.seeds, "seconds": seconds, "damaged": broken}


def _trouble(job: Job) -> str:
    found = records.read(job)
    return f"{job.what}: {found.why}" if found is not None and found.state == records.FAILED else ""


def _evaluation(study: StudyConfig, found: dict[Key, Outcome], missing: dict[Key, str]) -> Tree:
    of_arms: Tree = {}
    figure = next((name for name in _MAIN if any(name in one.figures for one in found.values())), _MAIN[0])
    for arm in arms(study):
        seeds = [seed for seed in study.study.seeds if (arm, seed) in found]
        why = {str(seed): missing[arm, seed] for seed in study.study.seeds if (arm, seed) in missing}
        if not seeds and not why:
            continue  # a retrieval by an arm without captions
        figures: dict[str, list[float]] = {}
        for seed in seeds:
            for name, value in found[arm, seed].figures.items():
                figures.setdefault(name, []).append(value)
        of_arms[arm.name] = {
            "seeds": seeds,
            "figures": {name: _spread(values) for name, values in figures.items()},
            "differences": {
                named: {"from": other.name, **between}
                for named, other in others(study, arm).items()
                if (between := difference(found, [(arm, other)], study.run.seed))
            },
            "missing": why,
        }
    return {
        "figure": figure,
        "arms": of_arms,
        "effects": effects(study, found),
        "basis": _basis(found, figure),
        "cautions": _cautions(found),
    }


def _cautions(found: dict[Key, Outcome]) -> list[str]:
    """Return the commands' warnings about their data, each once, with the runs unless all gave it."""
    of: dict[str, list[str]] = {}
    for (arm, seed), one in found.items():
        for said in one.cautions:
            of.setdefault(said, []).append(f"{arm.name}, seed {seed}")
    return [
        said if len(runs) == len(found) else f"{said} ({len(runs)} of {len(found)} runs, such as {runs[0]})"
        for said, runs in of.items()
    ]


def _basis(outcomes: dict[Key, Outcome], figure: str) -> str:
    """Return how many seeds and test clips the metrics of an evaluation cover, with a warning if these are few.

    If arms differ, the fewest and the most."""
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
    if groups and min(groups) < FEW_GROUPS:
        said += f"; few groups: {few_groups(min(groups))}"
    return said


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _spread(values: list[float]) -> Tree:
    return {"mean": fmean(values), "deviation": stdev(values) if len(values) > 1 else None, "of each": values}


def rows(evaluation: Tree) -> list[list[str]]:
    """Return a heading and the cells of each arm, as text."""
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


def effect_rows(evaluation: Tree) -> list[list[str]]:
    """Return a heading and the overall effect of each objective or masker, as text; empty if none spans several
    pairs."""
    found = [
        [of["of"], of["in place of"], f"{len(of['over'])}: {', '.join(of['over'])}", interval(of)]
        for of in evaluation["effects"]
    ]
    return [["taken", "in place of", "mean over", "difference, 95 %"], *found] if found else []


def tables(summary: Tree) -> str:
    """Return one Markdown table for each evaluation."""
    parts = []
    for name, evaluation in summary["evaluations"].items():
        parts += [f"{name}: {evaluation['figure']}\n", *_markdown(rows(evaluation)), ""]
        parts += [*_markdown(found), ""] if (found := effect_rows(evaluation)) else []
        parts += [evaluation["basis"], ""] if evaluation["basis"] else []
        parts += [part for said in evaluation["cautions"] for part in (f"warning: {said}", "")]
    return "\n".join(parts)


def _markdown(table: list[list[str]]) -> list[str]:
    head, *below = [[cell.replace("|", "/") for cell in cells] for cells in table]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *below)]
