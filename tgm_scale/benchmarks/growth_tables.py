"""Tables of `tgm-scale benchmark growth`, with exponents: how a figure grows with its independent variable."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tgm_scale.benchmarks.growth_start import PARTS
from tgm_scale.benchmarks.machine import table

Row = dict[str, Any]  # question, name, figures
_LEAST_IMPORT = 0.02  # share of all imports; smaller ones are summed


@dataclass(frozen=True)
class Question:
    """Axes of a question. by: the horizontal figure, with its unit; figures: the vertical ones, each with its unit."""

    by: str
    unit: str
    figures: dict[str, str]


_STEP = {"seconds": "s a step", "wall_seconds": "s a step by the clock", "added_MB": "MB added by the steps"}
QUESTIONS = {
    "visible tokens": Question("visible_tokens", "visible tokens of a clip", _STEP),
    "batch": Question("clips", "clips a step", _STEP),
    "frames": Question("frames", "frames of a clip", _STEP),
    "resolution": Question("pixels", "pixels of a side", _STEP),
    "processes": Question("processes", "processes, one clip each", _STEP),
    "checkpoint": Question(
        "parameters",
        "parameters",
        {
            "stop_seconds": "s the training stops",
            "write_seconds": "s to write",
            "resume_seconds": "s to resume, engine built",
        },
    ),
}


def rows_of(points: list[Row], question: str) -> list[Row]:
    """Return the figures of a question's points, ascending in its independent variable."""
    found = [dict(row["figures"]) for row in points if row["question"] == question]
    for row in found:
        if "peak_MB" in row:
            row["added_MB"] = row["peak_MB"] - row["start_MB"]
    return sorted(found, key=lambda row: row[QUESTIONS[question].by])


def exponent(rows: list[Row], by: str, figure: str) -> float:
    """Return the exponent from the first to the last row: 1 for linear growth, 2 for quadratic; NaN for a single
    row."""
    first, last = rows[0], rows[-1]
    if min(first[figure], last[figure]) <= 0 or first[by] == last[by]:
        return math.nan
    return math.log(last[figure] / first[figure]) / math.log(last[by] / first[by])


def of_points(points: list[Row]) -> list[str]:
    """Return a table for each question that has points."""
    asked = [name for name in QUESTIONS if rows_of(points, name)]
    found = [_growing(rows_of(points, name), QUESTIONS[name]) for name in asked]
    starts = [row for row in points if row["question"] == "start" and row["name"] != "imports"]
    if starts:
        found.append(_starts(starts))
    found += [_imports(row["figures"]["imports"]) for row in points if row["name"] == "imports"]
    workers = [row["figures"] for row in points if row["question"] == "workers"]
    if workers:
        found.append(_workers(workers))
    return found


def _growing(rows: list[Row], question: Question) -> str:
    """Return a table, with the exponent from the previous row in brackets."""
    more = {"peak_MB": "peak, MB"} if "peak_MB" in rows[0] else {"bytes": "bytes"}
    cells = []
    for number, row in enumerate(rows):
        before = rows[number - 1 : number + 1] if number else []
        grown = [
            f"{row[name]:.3g}" + (f" ({exponent(before, question.by, name):.2f})" if before else "")
            for name in question.figures
        ]
        cells.append((f"{row[question.by]:,}", *grown, *(f"{row[name]:,.0f}" for name in more)))
    return table((question.unit, *question.figures.values(), *more.values()), cells)


def _starts(starts: list[Row]) -> str:
    """Return a table of wall-clock and CPU seconds for each part, with its share of the wall-clock time."""
    cells = []
    for part in PARTS:
        row = [part]
        for one in starts:
            clock, cpu = (spans(one["figures"][of]) for of in ("clock", "cpu"))
            row.append(f"{clock[part]:.2f} ({clock[part] / sum(clock.values()):.0%}), {cpu[part]:.2f}")
        cells.append(row)
    sums = [[sum(spans(one["figures"][of]).values()) for of in ("clock", "cpu")] for one in starts]
    cells.append(["until the first step", *(f"{clock:.2f}, {cpu:.2f}" for clock, cpu in sums)])
    cells.append(["read from storage, MB", *(f"{one['figures']['read_MB']:.0f}" for one in starts)])
    return table(("part", *(f"{one['name']}: s by the clock (share), s of CPU" for one in starts)), cells)


def spans(ends: dict[str, float]) -> dict[str, float]:
    """Return the seconds of each part, from the times at its end."""
    return {part: ends[part] - (ends[PARTS[number - 1]] if number else 0.0) for number, part in enumerate(PARTS)}


def _imports(seconds: dict[str, float]) -> str:
    whole = sum(seconds.values())
    shown = {name: taken for name, taken in seconds.items() if taken >= _LEAST_IMPORT * whole}
    rows = [(name, f"{taken:.2f}", f"{taken / whole:.0%}") for name, taken in shown.items()]
    rest = whole - sum(shown.values())
    rows += [
        (f"{len(seconds) - len(shown)} others", f"{rest:.2f}", f"{rest / whole:.0%}"),
        ("all", f"{whole:.2f}", ""),
    ]
    return table(("imported", "s with the clock at each module", "share"), rows)


def _workers(rows: list[Row]) -> str:
    cells = [
        (len(row["worker_MB"]), f"{row['trainer_MB']:.0f}", ", ".join(f"{one:.0f}" for one in row["worker_MB"]))
        for row in rows
    ]
    return table(("data workers", "trainer, private MB", "each worker, private MB"), cells)
