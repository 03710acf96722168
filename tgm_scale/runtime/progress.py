"""Progress and remaining time of long work: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

LINE_EVERY_SECONDS = 15.0


class Task:
    """Progress of one task. `to` sets the amount done, `advance` adds to it."""

    def __init__(self, bars: ProgressBars, name: str, total: int, bar: Any):
        self.name, self.total, self.done = name, total, 0
        self._owner, self._bar = bars, bar
        self._began = self._line = time.monotonic()

    def advance(self, count: int = 1) -> None:
        self.to(self.done + count)

    def to(self, done: int, note: str = "") -> None:
        self.done = done
        self._owner.show(self, self._bar, note)

    def line(self, note: str) -> str | None:
        """Return the line to print without a terminal; None while the last line is recent."""
        now = time.monotonic()
        if now - self._line < LINE_EVERY_SECONDS and self.done < self.total:
            return None
        self._line = now
        text = f"{self.name}: {self.done}/{self.total}" + (f", {note}" if note else "")
        if 0 < self.done < self.total:
            text += f", {clock((now - self._began) / self.done * (self.total - self.done))} left"
        return text


class ProgressBars:
    """Bars for tasks that run side by side or one after another; a context manager."""

    def __init__(self) -> None:
        self._bars: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bars = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                                  console=Console(stderr=True))  # fmt: skip

    def task(self, name: str, total: int) -> Task:
        bar = self._bars.add_task(name, total=total, note="") if self._bars else None
        return Task(self, name, total, bar)

    def show(self, task: Task, bar: Any, note: str) -> None:
        if self._bars is not None:
            self._bars.update(bar, completed=task.done, note=note)
        elif (line := task.line(note)) is not None:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressBars:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()


def clock(seconds: float) -> str:
    """Return m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
