"""Tools of a row's check: sizes, its own folder, its log, and processes that cannot outlive its time limit."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from gpu_checks.scale import Scale
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.tuning import trials

ROOT = Path(__file__).parents[2]
_NAMES_AN_ERROR = re.compile(
    r"^(\[rank\d+\]: ?)?([\w.]*(Error|Exception|RunStopped|Diverged)\b|tgm-scale \w+( \w+)?:|FAILED)"
)
_MARK = "TGM_GPU_CHECK"  # variable that identifies all processes of a command
_MAY_DIE = 20.0  # seconds for a killed process to be gone
_LOOK = 0.1  # seconds between checks of a process


@dataclass(frozen=True)
class Found:
    """Result of a successful row: one line, figures by name, and possible improvements."""

    figure: str
    figures: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""


class Failed(Exception):
    """A promise of the docs is not kept. remedy: what to do about it."""

    def __init__(self, reason: str, remedy: str = "", figures: dict[str, Any] | None = None):
        super().__init__(reason)
        self.remedy, self.figures = remedy, figures or {}


class OutOfMemory(Failed):
    """A process ran out of memory, the device's or the host's."""


class Skipped(Exception):
    """The row cannot be tried here; the message says why."""


class Process:
    """Command in a session of its own, writing to the row's log; a context manager at whose end none of its processes
    is left. stopped: set when the whole row is to end."""

    def __init__(
        self, command: Sequence[str], log: Path, deadline: float, environment: dict[str, str], stopped: Event
    ):
        self._log, self._deadline, self._stopped = log, deadline, stopped
        self._mark = f"{_MARK}={uuid.uuid4().hex}"
        name, _, value = self._mark.partition("=")
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"$ {' '.join(command)}\n")
            stream.flush()
            self._from = stream.tell()
            self._process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**environment, name: value},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def output(self) -> str:
        with self._log.open(errors="replace") as stream:
            stream.seek(self._from)
            return stream.read()

    def wait(self) -> int:
        while self.code is None:
            self.tick()
        assert self.code is not None
        return self.code

    def tick(self) -> None:
        """Wait a moment. Raises Failed when the row's time is over, or it was stopped."""
        if self._stopped.is_set():
            self.kill()
            raise Failed("was stopped")
        if time.monotonic() > self._deadline:
            self.kill()
            raise Failed("took longer than the row's time limit and was stopped", "see the end of its log")
        time.sleep(_LOOK)

    def kill(self) -> None:
        """Send SIGKILL to all of its processes, as when a node is lost."""
        end = time.monotonic() + _MAY_DIE
        while left := _marked(self._mark):  # until none was started meanwhile
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                break  # one that waits for a dead device cannot be killed
            time.sleep(_LOOK)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _marked(mark: str) -> list[int]:
    """Return the running processes that started with this variable. Sessions, groups or parents do not suffice:
    torchrun gives each rank its own session, ninja each compiler a group, and parents die first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or belongs to another user
            # one that has ended and was not yet waited for has an empty environment
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@dataclass
class Bench:
    """Workplace of one row.

    inputs: folder shared by all rows; folder: the row's own, empty; deadline: on time.monotonic; gpus: facts of
    gpu_checks.card.look on each; earlier: figures of successful rows, by name; stopped: ends the processes of its
    threads."""

    scale: Scale
    inputs: Path
    folder: Path
    log: Path
    deadline: float
    gpus: list[dict[str, Any]] = field(default_factory=list)
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: Event = field(default_factory=Event)

    def start(self, command: Sequence[str], **variables: str) -> Process:
        """Start a command in the rows' environment, with `variables` set, and GPUs hidden where the device is a
        CPU."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **variables}
        paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if self.scale.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        return Process(command, self.log, self.deadline, environment, self.stopped)

    def python(self, *arguments: str, **variables: str) -> str:
        """Run `python ARGUMENTS` to its end and return its output. Raises Failed where its exit code is not 0."""
        with self.start([sys.executable, *arguments], **variables) as process:
            code, output = process.wait(), process.output()
        if code:
            raise failure(code, output)
        return output

    def note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as stream:
            print(text, file=stream)

    def measured(self, module: str, *arguments: str) -> dict[str, Any]:
        """Return the figures that a module of gpu_checks, run as a program, writes to the file named by --json."""
        file = self.folder / f"{module}.json"
        self.python("-m", f"gpu_checks.{module}", "--device", self.scale.device, "--json", str(file), *arguments)
        return json_object(file)


def failure(code: int, output: str) -> Failed:
    """Return the error for a process that ended with `code`, by its output: memory, or the last line naming an
    error."""
    what = trials.failure([code], output)
    if what["outcome"] == "out of memory":
        return OutOfMemory(what["why"], "free memory of the device, or take a smaller micro batch")
    named = [line.strip() for line in output.splitlines() if _NAMES_AN_ERROR.search(line)]
    why = named[-1][:300] if named else what["why"]
    return Failed(f"ended by {signal.Signals(-code).name}: {why}" if code < 0 else why, "see the end of its log")
