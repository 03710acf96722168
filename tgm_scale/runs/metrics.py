"""Output of a run in progress: metrics.jsonl (authoritative), TensorBoard, and a line with the time left."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TextIO

from PIL import Image

from tgm_scale.contracts import Problem
from tgm_scale.runs import events, pictures, run_folder
from tgm_scale.runs.boards import Board, TensorBoard, figures_of
from tgm_scale.runtime.files import describe_os_error, replace_file
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.progress import clock
from tgm_scale.runtime.terminal import message

if TYPE_CHECKING:
    from tgm_scale.runtime.distributed import HostCollectives

_FIGURES = ("loss", "samples", "step_seconds", "data_seconds", "guidance_seconds", "skipped_samples")  # that are read
_RECENT = 100  # losses; runs/faults.py compares a spike with no more


class Metrics:
    """Writer of one JSON object per step, mirrored to TensorBoard. A restart drops everything after its checkpoint.

    Only the main rank has one. others: further boards for the rows, which outlive this object."""

    def __init__(self, folder: Path, step: int, tensorboard: bool, others: Sequence[Board] = ()):
        self._folder = folder
        self.path = folder / "metrics.jsonl"
        _cut_after(self.path, step)
        _cut_after(folder / "skipped.jsonl", step)
        self._stream: TextIO = self.path.open("a", buffering=1, encoding="utf-8")
        self._skipped: TextIO = (folder / "skipped.jsonl").open("a", buffering=1, encoding="utf-8")
        self._warned = False  # whether this start has warned of a broken sample
        pictures.cut_after(folder, step)
        self._own: list[Board] = [TensorBoard(folder, step)] if tensorboard else []
        self._boards = [*self._own, *others]

    def log_problems(self, step: int, problems: list[Problem]) -> None:
        """Log a step's broken samples of all ranks, with a warning for the first of a start. Raises OSError that names
        the file."""
        if problems and not self._warned:
            self._warned = True
            first = problems[0]
            why = f"{first.reason} ({first.detail})" if first.detail else first.reason
            print(
                message(f"warning: {first.key}: {why}: its weight is 0; {self._skipped.name} names all such samples"),
                file=sys.stderr,
                flush=True,
            )
        for problem in problems:
            _append(self._skipped, {"step": step, **asdict(problem)})

    def write(self, row: dict[str, Any]) -> None:
        """Write a step's row. Raises OSError that names the file."""
        row = finite(row)
        _append(self._stream, row)
        for board in self._boards:
            board.row(row["step"], figures_of(row))

    def picture(self, step: int, picture: Image.Image) -> None:
        """Store the picture drawn after a step. Raises OSError that names the file."""
        pictures.keep(self._folder, step, picture)
        for board in self._boards:
            board.picture(step, picture)

    def flush(self) -> None:
        """Put all rows so far on the disk, before a checkpoint: a run that resumes from it writes only later rows."""
        for stream in (self._stream, self._skipped):
            stream.flush()
            os.fsync(stream.fileno())
        for board in self._boards:
            board.flush()

    def close(self) -> None:
        self._stream.close()
        self._skipped.close()
        for board in self._own:
            board.close()


def _append(stream: TextIO, row: dict[str, Any]) -> None:
    text = json.dumps(row) + "\n"
    try:
        stream.write(text)
    except OSError as error:
        raise OSError(f"{stream.name}: {describe_os_error(error, Path(stream.name).parent, len(text))}") from error


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl without invalid lines, which `rows_and_damaged` counts. A figure that
    was not finite is None, and named in the row's `not_finite`."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        begun = (folder / "config.yaml").is_file()
        said = "the run has made no step yet" if begun else run_folder.no_run(folder)
        raise ValueError(f"{folder}: no metrics.jsonl: {said}")
    return read_rows(path)[0]


def rows_and_damaged(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a run so far, and the number of invalid lines: those in metrics.jsonl, and those that a start
    has moved next to it. No rows in a folder without the file."""
    path = folder / "metrics.jsonl"
    aside = _aside(path)
    moved = aside.read_bytes().count(b"\n") if aside.is_file() else 0
    rows, damaged = read_rows(path) if path.is_file() else ([], [])
    return rows, len(damaged) + moved


def recent_losses(folder: Path, step: int) -> list[float]:
    """Return the losses of the updates made up to a step, oldest first; none where the run is new."""
    path = folder / "metrics.jsonl"
    rows = read_rows(path)[0] if path.is_file() else []
    made = (row["loss"] for row in rows if row["step"] <= step and not row.get("update_refused"))
    return [loss for loss in made if loss is not None]


def recent_losses_for_all(folder: Path, step: int, collectives: HostCollectives) -> list[float]:
    """Return the newest `recent_losses`, as many as the spike detector uses, read by rank 0 only. Collective."""
    return collectives.broadcast(recent_losses(folder, step)[-_RECENT:] if collectives.process.is_main else None)


def finite(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with null for NaN and infinities, which JSON does not have, and their names in `not_finite`."""
    lost = [name for name, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
    return row | dict.fromkeys(lost) | {"not_finite": lost} if lost else row


def read_rows(path: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the rows of a file, and its invalid lines. A last line cut off by a kill is neither."""
    rows, damaged = [], []
    *lines, cut = path.read_bytes().split(b"\n")
    for line in [*lines, *([cut] if _row(cut, path) else [])]:
        row = _row(line, path)
        if row is None:
            damaged.append(line)
        else:
            rows.append(row)
    return rows, damaged


def _row(line: bytes, path: Path) -> dict[str, Any] | None:
    """Return a line's row; None unless it is a JSON object with a step, valid figures, a text as digest if any, and in
    metrics.jsonl a loss."""
    try:
        row = json_of(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    if path.name == "metrics.jsonl" and "loss" not in row:
        return None
    if not all(isinstance(row.get(name), (int, float, NoneType)) for name in _FIGURES):
        return None
    return finite(row) if isinstance(row.get("data_digest", ""), str) else None


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.damaged")


def _cut_after(path: Path, step: int) -> None:
    """Drop the rows after a step; move invalid lines to a file next to this one, with a warning."""
    if not path.is_file():
        return
    rows, damaged = read_rows(path)
    if damaged:
        aside = _aside(path)
        with aside.open("ab") as stream:
            stream.writelines(line + b"\n" for line in damaged)
        events.append(path.parent, "lines_damaged", step=step, file=path.name, lines=len(damaged))
        print(f"warning: {path}: {len(damaged)} damaged lines are moved to {aside.name}", file=sys.stderr, flush=True)
    replace_file(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))


_TERMS = (("rec", "loss_reconstruction"), ("con", "loss_contrastive"))
_OLDER = {key for _, key in _TERMS}


class ProgressLine:
    """Live line on a terminal, elsewhere a plain line every n steps."""

    def __init__(self, total: int, every: int, stream: TextIO | None = None):
        self.total, self.every, self.stream = total, every, stream or sys.stderr
        self.live = self.stream.isatty()
        self._recent: list[tuple[float, int]] = []

    def show(self, row: dict[str, Any]) -> None:
        step = row["step"]
        self._recent = [*self._recent[-50:], (time.monotonic(), step)]
        last = step == self.total
        if not (self.live or last or step % self.every == 0 or len(self._recent) == 1):
            return
        text = self._text(row)
        self.stream.write(f"\r\x1b[K{text}" + ("\n" if last else "") if self.live else text + "\n")
        self.stream.flush()

    def say(self, text: str) -> None:
        """Print a separate line below the live one."""
        self.stream.write(("\n" if self.live else "") + text + "\n")
        self.stream.flush()

    def _text(self, row: dict[str, Any]) -> str:
        share = row["data_seconds"] / max(row["step_seconds"], 1e-9)
        parts = [
            f"step {row['step']}/{self.total}",
            in_words(row),
            f"lr {row['learning_rate']:.2e}",
            f"{row['clips_per_second']:.1f} clips/s",
            f"data {share:.0%}",
            f"ETA {self._time_left(row['step'])}",
        ]
        return "  ".join(parts)

    def _time_left(self, step: int) -> str:
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        return clock((now - then) / (last - first) * (self.total - step)) if last > first else "--:--"


def in_words(row: dict[str, Any]) -> str:
    """Return a text with a step's loss and its terms."""
    others = [(key.removeprefix("loss_"), key) for key in row if key.startswith("loss_") and key not in _OLDER]
    terms = [f"{name} {row[key]:.4f}" for name, key in (*_TERMS, *others) if row[key] is not None]
    return "  ".join([f"loss {loss_in_words(row)}", *terms])


def loss_in_words(row: dict[str, Any]) -> str:
    """Return a step's loss as text; null means that it was not finite, or that the step had no usable clip."""
    if row["loss"] is not None:
        return f"{row['loss']:.4f}"
    return "not finite" if "loss" in row.get("not_finite", ()) else "none (no usable clip)"
