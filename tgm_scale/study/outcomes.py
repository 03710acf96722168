"""Results of a study's evaluations, read back and checked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tgm_scale.data.lists.text import shown
from tgm_scale.evaluation.settings import FinetuneConfig, FrozenConfig
from tgm_scale.runs.figures import cautions, shares
from tgm_scale.runtime.outside.json_text import json_lines, json_object
from tgm_scale.study import records
from tgm_scale.study.arms import Arm, Job

Key = tuple[Arm, int]  # an arm and a seed


class Outcome(NamedTuple):
    """Results of an evaluation of one run.

    right: whether each test clip is right; groups: of the clips that have one; truths: the label or caption of each;
    data: a digest of each part's clips and labels, none in older results; cautions: the command's warnings about its
    data, such as clips in both parts."""

    figures: dict[str, float]
    right: dict[str, bool]
    groups: dict[str, str]
    truths: dict[str, str]
    data: dict[str, str]
    cautions: list[str]


def outcome(job: Job) -> Outcome:
    """Read the results of a command. Raises ValueError for damaged files."""
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
            cautions(tree),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if type(error) is ValueError else f"{type(error).__name__} {error} in it"
        raise ValueError(
            f"{results} or {rows.name} is damaged ({why}): remove it, and the same study measures again"
        ) from None


def _refuse_another_top1(figures: dict[str, float], right: Sequence[bool]) -> None:
    """Raise ValueError if top1 does not match the predictions.

    R@1 of a retrieval need not match: captions of equal tokens are one answer."""
    share = sum(right) / max(len(right), 1)
    if not math.isclose(figures.get("top1", share), share, abs_tol=1e-6):
        raise ValueError(f"top1 is {figures['top1']:.6g}, and {share:.6g} of {len(right)} predictions are right")


def outcomes(jobs: Iterable[Job]) -> tuple[dict[Key, Outcome], dict[Key, str]]:
    """Return the results by arm and seed, and the reasons for missing ones.

    Results that were measured on other data than the newest count as missing."""
    found: dict[Key, Outcome] = {}
    damaged: dict[Key, str] = {}
    newest: list[tuple[Job, Outcome]] = []  # the newest of all, and of each seed
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


def damaged_figures(jobs: Sequence[Job]) -> list[str]:
    """Return what is wrong with the results of finished commands, as in `outcomes`."""
    done = [job for job in jobs if job.what != records.PRETRAIN and records.is_done(job)]
    found = [outcomes(job for job in done if job.what == what)[1] for what in dict.fromkeys(job.what for job in done)]
    return [why for damaged in found for why in damaged.values()]


def _other_data(job: Job, of: Outcome, newer_job: Job, newer: Outcome) -> str:
    """Return how an outcome's data differ from those of a newer one; "" if they are the same as far as is known."""
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
    """Return whether a part of the data differs; a share of training labels may, since the seed draws it."""
    assert isinstance(job.config, (FrozenConfig, FinetuneConfig))
    drawn = part == "train" and job.config.data.share < 1 and job.seed != newer_job.seed
    return not drawn and part in of.data and of.data[part] != newer.data.get(part, of.data[part])
