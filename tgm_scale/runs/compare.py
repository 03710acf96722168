"""First differences between runs: configuration, data sequence, losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runs.status import read_tree, results

NOT_THERE = "not there"  # shown for a key that a configuration lacks


def compare(one: str, other: str) -> tuple[str, bool]:
    """Return a report on the first differences between two runs (configuration, data sequence, losses), and whether
    they are equal.

    Raises ValueError for a folder that is not a run."""
    trees = [read_tree(run) for run in (one, other)]
    report = _config_differences(*trees)
    if all("encoder" in tree for tree in trees):
        figures = [results(Path(run)) for run in (one, other)]
        names = dict.fromkeys([*figures[0], *figures[1]])
        apart = [name for name in names if figures[0].get(name) != figures[1].get(name)]
        report += [
            f"{name}: {figures[0].get(name, 'not there')} | {figures[1].get(name, 'not there')}" for name in apart
        ]
        return "\n".join(report if apart else [*report, "results: equal"]), not apart
    rows = {run: {row["step"]: row for row in read_metrics(Path(run))} for run in (one, other)}
    steps = sorted(rows[one].keys() & rows[other].keys())
    if not steps:
        raise ValueError(f"{one} and {other} have no step in common")
    made_by = {
        run: {step: rows[run][step].get("data_digest", "").rpartition("-")[0] for step in steps} for run in rows
    }
    alike = [step for step in steps if made_by[one][step] == made_by[other][step]]
    data = [step for step in alike if rows[one][step].get("data_digest") != rows[other][step].get("data_digest")]
    if data:
        report.append(f"data: step {data[0]} is the first with other clips")
    elif alike:
        report.append(f"data: equal, {len(alike)} steps")
    if alike != steps:
        report.append(f"data: {len(steps) - len(alike)} steps cannot be compared: other versions made their digests")
    differences = {step: _apart(rows[one][step]["loss"], rows[other][step]["loss"]) for step in steps}
    apart = [step for step in steps if differences[step] > 0]
    if apart:
        worst = max(apart, key=differences.__getitem__)
        report.append(
            f"loss: step {apart[0]} is the first that differs, by {differences[apart[0]]:.3g}; the most is "
            f"{differences[worst]:.3g} at step {worst}; {differences[steps[-1]]:.3g} at step {steps[-1]}"
        )
    else:
        report.append(f"loss: equal to the last bit, {len(steps)} steps")
    lengths = {run: max(rows[run]) for run in rows}
    if lengths[one] != lengths[other]:
        report.append(f"length: {one} has {lengths[one]} steps, {other} {lengths[other]}")
    return "\n".join(report), not (data or apart or lengths[one] != lengths[other])


def _apart(one: float | None, other: float | None) -> float:
    """Return the distance of two losses, where None stands for one that was not finite."""
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other)


def _config_differences(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    lines = []
    for key, values in differing_keys([here, there]).items():
        words = [repr(value) if value is not NOT_THERE else NOT_THERE for value in values]
        lines.append(f"config: {key} is {words[0]} in the first, {words[1]} in the second")
    return lines or ["config: equal"]


def differing_keys(trees: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys, except run.dir, whose values differ between configurations, with each value or NOT_THERE."""
    found = {}
    for section in dict.fromkeys(section for tree in trees for section in tree):
        each = [tree.get(section) or {} for tree in trees]
        for key in dict.fromkeys(key for one in each for key in one):
            values = [one.get(key, NOT_THERE) for one in each]
            alike = all(one.get(key) == each[0].get(key) for one in each)  # earlier versions left keys out
            if not alike and (section, key) != ("run", "dir"):
                found[f"{section}.{key}"] = values
    return found
