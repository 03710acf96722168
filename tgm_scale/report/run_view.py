"""A run folder as a report shows it: everything readable, and a sentence for what is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tgm_scale.report.thinning import Series
from tgm_scale.runs import events, figures, pictures, run_folder, status
from tgm_scale.runs.metrics import rows_and_damaged
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import json_object, json_of
from tgm_scale.runtime.terminal import tree_without_secrets

_NAMED = 20  # samples listed for a reason
_LONGEST = 1e7  # seconds of a step: four months
_NUMBERS = {int, float}
SHARES = {"data_seconds": "data_share", "guidance_seconds": "guidance_share"}  # of the step, derived from the columns
Row = dict[str, Any]


@dataclass
class Named:
    """Samples with one reason: their number, and the first of them."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def note(self, name: str) -> None:
        self.count += 1
        if len(self.names) < _NAMED:
            self.names.append(name)


class Reconstruction(NamedTuple):
    """A picture of clips, their masks and the model's reconstruction at a step.

    of_what: source of the clips, "knn.test" or "the data"; "" if unknown."""

    step: int
    png: bytes
    of_what: str = ""


@dataclass(frozen=True)
class RunView:
    """Contents of a run folder.

    name: as given. lines: the output of `tgm-scale status`. rows: of metrics.jsonl, by ascending step. columns: their
    metrics by name. skipped, left_out: by reason. command: resumes the run, "" if unknown. complaints: a sentence for
    each thing that is unreadable or malformed."""

    name: str
    root: Path
    lines: dict[str, str]
    tree: dict[str, dict[str, Any]]
    plan: dict[str, Any]
    starts: list[dict[str, Any]]
    rows: list[Row]
    columns: dict[str, Series]
    skipped: dict[str, Named]
    left_out: dict[str, Named]
    refused: dict[int, list[str]]  # step -> keys of its samples
    events: list[dict[str, Any]]
    results: dict[str, list[tuple[str, str]]]  # by method: name and text of each metric and fact
    judged_at: float  # time of the newest results, seconds since 1970; 0 without any
    reconstruction: Reconstruction | None  # the newest
    command: str
    complaints: list[str]

    def of_earlier_attempt(self, event: dict[str, Any]) -> bool:
        """Return whether a failure was followed by a start, or by the results of an evaluation."""
        before = event.get("starts")
        started = type(before) is int and before < len(self.starts)
        at = _time(event)
        return event["event"] == run_folder.FAILED and (started or (at is not None and at < self.judged_at))

    def refusals(self) -> dict[str, list[int]]:
        """Return the steps whose update was refused, by reason."""
        found: dict[str, list[int]] = {}
        for row in self.rows:
            if row.get("update_refused") is True:
                found.setdefault(str(row.get("refusal") or "not told"), []).append(row["step"])
        return found


def _columns(rows: list[Row]) -> dict[str, Series]:
    """Return every metric as a series over the rows that have it, and data and guidance as shares of the step."""
    steps = np.asarray([row["step"] for row in rows], dtype=np.float64)
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    found = {name: column for name in names if len(column := _column(rows, steps, name))}
    seconds = found.get("step_seconds")
    for part, share in SHARES.items():
        if part in found and seconds is not None and np.array_equal(found[part].steps, seconds.steps):
            if part == "guidance_seconds" and not found[part].values.any():  # the run has no frozen models
                continue
            whole = np.where(seconds.values > 0, seconds.values, np.nan)
            found[share] = Series(seconds.steps, found[part].values / whole)
    return found


def _column(rows: list[Row], steps: np.ndarray, name: str) -> Series:
    """Return a metric as a series: NaN for values that were not finite, without rows that lack a number."""
    values = [row.get(name) for row in rows]
    if set(map(type, values)) <= _NUMBERS:
        return Series(steps, np.asarray(values, dtype=np.float64))
    values = [
        value if type(value) in _NUMBERS else math.nan if value is None and _was_lost(row, name) else None
        for row, value in zip(rows, values)
    ]
    kept = np.asarray([value is not None for value in values], dtype=bool)
    return Series(steps[kept], np.asarray([value for value in values if value is not None], dtype=np.float64))


def _was_lost(row: Row, name: str) -> bool:
    lost = row.get("not_finite")
    return isinstance(lost, list) and name in lost


def look(folder: str) -> RunView:
    """Read a run folder. Raises ValueError for a folder that is no run."""
    root = Path(folder)
    _refuse_none(root, folder)
    rows, damaged = rows_and_damaged(root)
    complaints: list[str] = []
    as_written, rows = rows, sorted(rows, key=lambda row: row["step"])

    def told(read: Callable[[], Any], nothing: Any) -> Any:
        try:
            return read()
        except (ValueError, OSError) as error:
            if str(error) not in complaints:
                complaints.append(str(error))
            return nothing

    judged: dict[str, str] = {}
    results: dict[str, list[tuple[str, str]]] = {}
    judged_at = 0.0
    for file in status.result_files(root):
        one: dict[str, str] = told(partial(status.result, file), {})
        judged |= one
        for method in one:
            results[method] = told(partial(_details, file), [])
            judged_at = max(judged_at, file.stat().st_mtime)
    lines = told(lambda: status.lines(folder, as_written, damaged, judged), {})
    lines |= {name: said for name, said in judged.items() if name not in lines}
    tree = told(lambda: tree_without_secrets(status.read_tree(folder)), {})
    if "encoder" not in tree:  # evaluations of frozen features have no steps
        complaints += _of_rows(root, as_written, damaged)
    plan = told(lambda: run_folder.read_plan(root), {}) if (root / "plan.json").exists() else {}
    has_starts = rows or (root / "environment.jsonl").exists()
    starts = told(lambda: run_folder.starts(root), []) if has_starts else []
    command = ""
    if lines.get("state") != "finished" and plan and isinstance(tree.get("run"), dict):
        with suppress(KeyError, TypeError, OSError):
            command = status.command(root, tree, plan["world_size"], starts)
    return RunView(
        name=folder.rstrip("/") or folder,
        root=root,
        lines=lines,
        tree={name: section for name, section in tree.items() if isinstance(section, dict)},
        plan=plan,
        starts=starts,
        rows=rows,
        columns=_columns(rows),
        skipped=_by_reason(root / "skipped.jsonl"),
        left_out=_by_reason(root / "left_out.jsonl"),
        refused=_refused(root / "refused.jsonl"),
        events=events.read(root),
        results=results,
        judged_at=judged_at,
        reconstruction=told(lambda: _newest(root), None),
        command=command,
        complaints=complaints,
    )


def _details(file: Path) -> list[tuple[str, str]]:
    found = json_object(file)
    try:
        return [*figures.in_words(found), *figures.compared_in_words(found)]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{file}: its intervals, facts or baselines are not as an evaluation writes them "
                         f"({type(error).__name__} {error})") from None  # fmt: skip


def _newest(root: Path) -> Reconstruction | None:
    return None if (found := pictures.newest(root)) is None else Reconstruction(*found)


def _refuse_none(root: Path, folder: str) -> None:
    if not root.exists():
        raise ValueError(f"{folder}: no such folder{like(folder)}; wanted a run folder, such as runs/debug")
    if not root.is_dir():
        raise ValueError(f"{folder}: a file; wanted a run folder, such as runs/debug; a page's name follows --output")
    if any((root / name).is_file() for name in ("config.yaml", "metrics.jsonl")):
        return
    why = run_folder.failure(root)
    said = f"its start failed: {why}" if why else run_folder.no_run(root)
    raise ValueError(f"{folder}: no config.yaml and no metrics.jsonl: {said}")


def _of_rows(root: Path, rows: list[Row], damaged: int) -> Iterator[str]:
    if not (root / "metrics.jsonl").is_file():
        yield "There is no metrics.jsonl: the run has made no step yet, or its folder was copied without it."
    elif not rows:
        yield "metrics.jsonl has no row: the run has made no step yet."
    if damaged:
        yield f"{damaged} {'line' if damaged == 1 else 'lines'} of metrics.jsonl are damaged and not drawn."
    steps = [row["step"] for row in rows]
    if steps and steps != list(range(1, len(steps) + 1)):
        lacking = steps[-1] - len(set(steps))
        yield (
            "The steps of metrics.jsonl are not one after another from 1"
            + (f", {lacking} are lacking" if lacking > 0 else "")
            + ": `tgm-scale check` says more."
        )


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in the lines of a file; other lines are skipped, and a missing file has none."""
    if file.is_file():
        with file.open("rb") as stream:
            for line in stream:
                with suppress(ValueError):
                    if isinstance(found := json_of(line), dict):
                        yield found


def _by_reason(file: Path) -> dict[str, Named]:
    found: dict[str, Named] = {}
    for one in _json_lines(file):
        step, detail = one.get("step"), one.get("detail")
        words = [str(one.get("key")), f"step {step}" if type(step) is int else "", str(detail) if detail else ""]
        found.setdefault(str(one.get("reason")), Named()).note(": ".join(filter(None, words)))
    return dict(sorted(found.items(), key=lambda item: -item[1].count))


def _refused(file: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for one in _json_lines(file):
        if type(step := one.get("step")) is int and isinstance(keys := one.get("keys"), list):
            found.setdefault(step, []).extend(map(str, keys[:_NAMED]))
    return found


@dataclass(frozen=True)
class Stretch:
    """One start of a run.

    began: seconds since 1970; seconds: spent in its steps that count; first, last: these steps."""

    start: dict[str, Any]
    began: float | None
    seconds: float
    first: int
    last: int


def stretches(view: RunView) -> list[Stretch]:
    """Return the stretch of every start. Steps that a later start repeated belong to the later one."""
    ends, lowest = [], float("inf")
    for start in reversed(view.starts):
        ends.append(lowest)
        lowest = min(lowest, start["step"])
    made, seconds = [0] * len(view.starts), [0.0] * len(view.starts)
    bounds = list(zip((start["step"] for start in view.starts), reversed(ends)))
    number = 0
    for row in view.rows if bounds else ():
        while number + 1 < len(bounds) and row["step"] > bounds[number][1]:
            number += 1
        made[number] += 1
        taken = row.get("step_seconds")
        if isinstance(taken, (int, float)) and 0 < taken < _LONGEST:
            seconds[number] += taken
    found = []
    for number, start in enumerate(view.starts):
        first = start["step"] + 1
        found.append(Stretch(start, _time(start), seconds[number], first, first + made[number] - 1))
    return found


def _time(start: dict[str, Any]) -> float | None:
    try:
        return datetime.strptime(start["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
