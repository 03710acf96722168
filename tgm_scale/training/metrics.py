"""What a run says while it goes: metrics.jsonl (the truth), TensorBoard, and a line with the time left."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from tgm_scale.contracts import Problem
from tgm_scale.runtime.distributed import Control
from tgm_scale.training.run_folder import replace_file

_RECENT = 100  # losses; training/faults.py measures a spike against no more


class Metrics:
    """Writes one JSON object a step and mirrors it to TensorBoard. A restart drops what came after the checkpoint.

    Only the main rank has one."""

    def __init__(self, folder: Path, step: int, tensorboard: bool):
        self.path = folder / "metrics.jsonl"
        _cut_after(self.path, step)
        _cut_after(folder / "skipped.jsonl", step)
        self._stream: TextIO = self.path.open("a", buffering=1)
        self._skipped: TextIO = (folder / "skipped.jsonl").open("a", buffering=1)
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, row: dict[str, Any], problems: list[Problem]) -> None:
        """A step's row, and its broken samples of all ranks."""
        for problem in problems:
            self._skipped.write(json.dumps({"step": row["step"], **asdict(problem)}) + "\n")
        self._stream.write(json.dumps(row) + "\n")
        if self._board is not None:
            for name, value in row.items():
                if isinstance(value, (int, float)) and name != "step":
                    self._board.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """Put all rows so far on the disk. Before a checkpoint: a run that goes on from it writes those after it."""
        for stream in (self._stream, self._skipped):
            stream.flush()
            os.fsync(stream.fileno())
        if self._board is not None:
            self._board.flush()  # else a kill would lose the last two minutes

    def close(self) -> None:
        self._stream.close()
        self._skipped.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line cut short by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: no metrics.jsonl: not a run folder, or a run that made no step yet")
    return _rows(path)


def recent_losses(folder: Path, step: int) -> list[float]:
    """The losses of the updates made up to a step, oldest first; none where the run is new."""
    path = folder / "metrics.jsonl"
    rows = _rows(path) if path.is_file() else []
    return [row["loss"] for row in rows if row["step"] <= step and not row["update_refused"]]


def recent_losses_for_all(folder: Path, step: int, control: Control) -> list[float]:
    """The newest `recent_losses`, as many as a spike is measured against, read by rank 0 alone. Collective."""
    return control.broadcast(recent_losses(folder, step)[-_RECENT:] if control.place.is_main else None)


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _cut_after(path: Path, step: int) -> None:
    if path.is_file():
        kept = [row for row in _rows(path) if row["step"] <= step]
        replace_file(path, "".join(json.dumps(row) + "\n" for row in kept))


_TERMS = (("rec", "loss_reconstruction"), ("con", "loss_contrastive"))


class ProgressLine:
    """A live line on a terminal, a plain line every n steps elsewhere."""

    def __init__(self, total: int, every: int, stream: TextIO = sys.stderr):
        self.total, self.every, self.stream = total, every, stream
        self.live = stream.isatty()
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
        """A line of its own, below the live one."""
        self.stream.write(("\n" if self.live else "") + text + "\n")
        self.stream.flush()

    def _text(self, row: dict[str, Any]) -> str:
        share = row["data_seconds"] / max(row["step_seconds"], 1e-9)
        parts = [
            f"step {row['step']}/{self.total}",
            f"loss {row['loss']:.4f}",
            *(f"{name} {row[key]:.4f}" for name, key in _TERMS if row[key] is not None),
            f"lr {row['learning_rate']:.2e}",
            f"{row['clips_per_second']:.1f} clips/s",
            f"data {share:.0%}",
            f"ETA {_clock(self._seconds_left(row['step']))}",
        ]
        return "  ".join(parts)

    def _seconds_left(self, step: int) -> float | None:
        (then, first), (now, last) = self._recent[0], self._recent[-1]
        return (now - then) / (last - first) * (self.total - step) if last > first else None


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "--:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
