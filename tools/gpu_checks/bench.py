"""What a row's check works with: sizes, its own folder, its log, and processes that cannot outlive its time limit."""

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
_MARK = "TGM_GPU_CHECK"  # variable by which all processes of a command are known
_MAY_DIE = 20.0  # seconds for a killed process to be gone
_LOOK = 0.1  # seconds from one look at a process to the next


@dataclass(frozen=True)
class Found:
    """What a row that worked has to say: one line, figures by name, and what could be better."""

    figure: str
    figures: dict[str, Any] = field(default_factory=dict)
    remedy: str = ""


class Failed(Exception):
    """What docs promise did not work. remedy: what to do about it."""

    def __init__(self, reason: str, remedy: str = "", figures: dict[str, Any] | None = None):
        super().__init__(reason)
        self.remedy, self.figures = remedy, figures or {}


class OutOfMemory(Failed):
    """A process had not enough memory, the device's or the host's."""


class Skipped(Exception):
    """What cannot be tried here, and why."""


class Process:
    """A command in a session of its own, writing to the row's log; a context manager at whose end nothing of it is
    left. stopped: set where all of the row is to end."""

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
        """SIGKILL to all of its processes, as a lost node ends."""
        end = time.monotonic() + _MAY_DIE
        while left := _marked(self._mark):  # until none has been born meanwhile
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > end:
                break  # one that waits for a dead device cannot even be killed
            time.sleep(_LOOK)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LOOK)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _marked(mark: str) -> list[int]:
    """The processes that still run and began with this variable. Not those of a session, of a group or below a
    parent: torchrun gives each rank a session of its own, ninja each compiler a group, and parents die first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended, or is another user's
            # what has ended and was not yet waited for has none
            if mark.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


@dataclass
class Bench:
    """One row's place to work.

    inputs: folder of what all rows share; folder: the row's own, empty; deadline: on time.monotonic's clock;
    gpus: what gpu_checks.card.look says of each; earlier: figures of rows that worked, by name; stopped: ends what
    its threads run."""

    scale: Scale
    inputs: Path
    folder: Path
    log: Path
    deadline: float
    gpus: list[dict[str, Any]] = field(default_factory=list)
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    stopped: Event = field(default_factory=Event)

    def start(self, command: Sequence[str], **variables: str) -> Process:
        """A command in the environment of the rows: `variables` are set, and no GPU is seen where none is wanted."""
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **variables}
        paths = [str(ROOT), str(ROOT / "tools"), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        if self.scale.device == "cpu":
            environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        return Process(command, self.log, self.deadline, environment, self.stopped)

    def python(self, *arguments: str, **variables: str) -> str:
        """Run `python ARGUMENTS` to its end and return what it said. Raises Failed where its exit code is not 0."""
        with self.start([sys.executable, *arguments], **variables) as process:
            code, output = process.wait(), process.output()
        if code:
            raise failure(code, output)
        return output

    def note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as stream:
            print(text, file=stream)

    def measured(self, module: str, *arguments: str) -> dict[str, Any]:
        """The figures that a module of gpu_checks, run as a program, writes to the file named by --json."""
        file = self.folder / f"{module}.json"
        self.python("-m", f"gpu_checks.{module}", "--device", self.scale.device, "--json", str(file), *arguments)
        return json_object(file)


def failure(code: int, output: str) -> Failed:
    """The error for a process that ended with `code`, from what it said: memory, or the last that names an error."""
    what = trials.failure([code], output)
    if what["outcome"] == "out of memory":
        return OutOfMemory(what["why"], "free memory of the device, or take a smaller micro batch")
    named = [line.strip() for line in output.splitlines() if _NAMES_AN_ERROR.search(line)]
    why = named[-1][:300] if named else what["why"]
    return Failed(f"ended by {signal.Signals(-code).name}: {why}" if code < 0 else why, "see the end of its log")
