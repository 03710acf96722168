"""Launcher of a study's commands, several at a time, within a time budget."""

from __future__ import annotations

import heapq
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from tgm_scale.config import StudySection
from tgm_scale.evaluation.settings import FrozenConfig
from tgm_scale.runtime.processes import LocalRun, unwinding
from tgm_scale.runtime.progress import clock
from tgm_scale.runtime.terminal import message
from tgm_scale.study import records
from tgm_scale.study.arms import PRETRAIN, Job, Unit
from tgm_scale.study.records import Times

LOG = "output.log"
_LOOK = 0.2  # seconds between polls of the commands
_GRACE = 90.0  # seconds for commands to save a checkpoint when they are asked to stop
_WHY = 400  # longest reason that is kept, letters

Slot = dict[str, str]  # environment variables of the command that runs in it


def slots(section: StudySection) -> list[Slot]:
    """Return the slots of this host: each with GPUs of its own, or the CPU if there are none. Raises ValueError."""
    count = torch.cuda.device_count()
    if not count:
        cores = len(os.sched_getaffinity(0))
        return [{} for _ in range(section.parallel or max(1, cores // section.processes))]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = named.split(",")[:count] if named else [str(number) for number in range(count)]
    groups = count // section.processes
    if groups < (section.parallel or 1):
        raise ValueError(
            f"study.parallel={section.parallel or 1} runs of study.processes={section.processes}: want a GPU for each "
            f"process, and this host shows {count}: lower one of them"
        )
    each = [names[i * section.processes : (i + 1) * section.processes] for i in range(section.parallel or groups)]
    return [{"CUDA_VISIBLE_DEVICES": ",".join(group)} for group in each]


@dataclass(frozen=True)
class Budget:
    """Units that fit into the time, estimated from finished commands.

    seconds: until the last one ends, None if unknown; begun: units, in order; left_out: units that would end too
    late."""

    seconds: float | None
    begun: list[Unit]
    left_out: list[Unit]


def budget(units: Sequence[Unit], times: Times, parallel: int, seconds: float | None) -> Budget:
    """Estimate which units fit: they begin in order, each in the slot that is free first."""
    free = [0.0] * parallel
    begun, left_out, known = [], [], True
    for unit in units:
        left = times.left(unit)
        known = known and left is not None
        if seconds is not None and free[0] + (left or 0.0) > seconds:
            left_out.append(unit)
        else:
            begun.append(unit)
            heapq.heapreplace(free, free[0] + (left or 0.0))
    return Budget(max(free) if known else None, begun, left_out)


@dataclass
class _Started:
    """A running command, its unit, and the offset at which its log begins."""

    unit: Unit
    job: Job
    life: LocalRun
    log_from: int


class Launcher:
    """Launcher of units, each command after the one before; finished ones are skipped, failed ones are run again.

    A failed command ends its unit only if it is the pretraining."""

    def __init__(self, units: Sequence[Unit], places: Sequence[Slot], hours: float | None) -> None:
        self.left_out: list[Unit] = []
        self._waiting = deque(unit for unit in units if not all(map(records.is_done, unit.jobs)))
        self._times = Times(units)
        self._places = places
        self._end = time.monotonic() + 3600 * hours if hours is not None else None
        self._running: dict[int, _Started] = {}

    @unwinding()
    def run(self) -> None:
        with ExitStack() as stack:
            stack.callback(self._stop)
            while self._waiting or self._running:
                for place in range(len(self._places)):
                    if place not in self._running:
                        self._begin_next(place)
                time.sleep(_LOOK)
                for place, started in list(self._running.items()):
                    if not started.life.running() or (started.life.ended() and any(self._codes(started))):
                        self._ended(place, started)

    @staticmethod
    def _codes(started: _Started) -> list[int]:
        return [code for rank in started.life.ranks if (code := rank.poll()) is not None]

    def _begin_next(self, place: int) -> None:
        while self._waiting:
            unit = self._waiting.popleft()
            if self._end is None or time.monotonic() + (self._times.left(unit) or 0.0) <= self._end:
                self._begin(place, unit, 0)
                return
            self.left_out.append(unit)

    def _begin(self, place: int, unit: Unit, first: int) -> None:
        """Start the unit's first unfinished command, from this position on."""
        job = next((job for job in unit.jobs[first:] if not records.is_done(job)), None)
        if job is None:
            return
        job.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(job.config, FrozenConfig):
            _share_features(job)
        log = job.folder / LOG
        line = [sys.executable, "-m", "tgm_scale", *job.arguments]
        begins = log.stat().st_size if log.is_file() else 0
        life = LocalRun(line, job.processes, log, self._places[place]).__enter__()
        self._running[place] = _Started(unit, job, life, begins)

    def _ended(self, place: int, started: _Started) -> None:
        job = started.job
        failed = any(self._codes(started))
        if failed and started.life.running():
            time.sleep(1)  # for the last output of the others
        started.life.__exit__()
        del self._running[place]
        seconds = time.time() - started.life.began
        why = _why(started) if failed else ""
        records.write(job, records.FAILED if failed else records.DONE, seconds, why)
        if not failed:
            self._times.add(job, seconds)
        how = f"failed: {why}" if failed else f"done in {clock(seconds)}{self._left(started)}"
        print(message(f"{job.arm.name}, seed {job.seed}: {job.what}: {how}"), flush=True)
        if not failed or job.what != PRETRAIN:
            self._begin(place, started.unit, started.unit.jobs.index(job) + 1)

    def _left(self, ended: _Started) -> str:
        """Return how long the rest takes, estimated from finished commands; "" if unknown or nothing is left."""
        begun = [self._times.left_of(_from(ended, 1))]
        for one in self._running.values():
            own, later = self._times.left_of([one.job]), self._times.left_of(_from(one, 1))
            if own is None or later is None:
                return ""
            begun.append(max(0.0, own - (time.time() - one.life.began)) + later)
        room = None if self._end is None else self._end - time.monotonic()
        free = [0.0] * len(self._places)
        for number, seconds in enumerate([*begun, *map(self._times.left, self._waiting)]):
            if seconds is None:
                return ""
            if number < len(begun) or room is None or free[0] + seconds <= room:  # others will be left out
                heapq.heapreplace(free, free[0] + seconds)
        return f"; about {clock(max(free))} left" if max(free) >= 1 else ""

    def _stop(self) -> None:
        """Ask running commands to stop, which saves checkpoints, and wait; a second signal ends the wait."""
        try:
            for started in self._running.values():
                for rank in started.life.ranks:
                    rank.terminate()
            end = time.monotonic() + _GRACE
            while any(one.life.running() for one in self._running.values()) and time.monotonic() < end:
                time.sleep(_LOOK)
        finally:
            for started in self._running.values():
                started.life.__exit__()
                records.write(started.job, records.STOPPED, time.time() - started.life.began)


def _from(started: _Started, later: int) -> Sequence[Job]:
    """Return the commands of its unit, from the started one plus `later` on.

    Earlier ones that failed are not run again."""
    return started.unit.jobs[started.unit.jobs.index(started.job) + later :]


def _share_features(job: Job) -> None:
    """Share one folder of features among all evaluations of a run.

    Its files are named by weights, data and views, so that kNN, probe and other labels of the same clips decode them
    once."""
    own, shared = job.folder / "features", job.folder.parent / "features"
    if not os.path.lexists(own):
        shared.mkdir(exist_ok=True)
        own.symlink_to(os.path.join("..", "features"))


def _why(started: _Started) -> str:
    """Return why a command failed: its message from `tgm-scale COMMAND:` on, or its last line."""
    with (started.job.folder / LOG).open("rb") as stream:
        stream.seek(started.log_from)
        lines = [line for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    marks = [number for number, line in enumerate(lines) if line.startswith("tgm-scale ")]
    said = " ".join(line.strip() for line in (lines[marks[-1] :] if marks else lines[-1:]))
    codes = sorted({rank.returncode for rank in started.life.ranks if rank.returncode})
    return f"exit code {', '.join(map(str, codes))}: {said[:_WHY] or 'nothing said'}"
