"""Detection of a dead or hung rank, which is named, and the others stopped, within a minute.

A thread of every rank writes a heartbeat with its step and phase to RUN/ranks/NNNNN. If a rank makes no progress for
too long, its thread reads the others' files: it waits for the ranks that are behind it, or whose own thread is silent.
The files also hold the seconds that each rank spends in each phase."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

from tgm_scale.data.access import patience
from tgm_scale.runs.bottleneck import DECAY
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_object

PHASES = ("data", "guidance", "meeting", "update", "checkpoint", "aside")
ASIDE = PHASES[-1]  # work that no step needs: a measurement, a trace; its time is not reported
_UNHURRIED = PHASES[-2:]
_BEAT = 5.0  # seconds between heartbeats
_OPENING = 6 * 3600.0  # seconds until the data is open: shards without an index are read through once, by rank 0
_LONG_PHASE = 1800.0  # seconds for a checkpoint, for `ASIDE`, and for the first steps of a start, which compile
_MEDIANS = 10  # times the usual seconds of a step: below that, no hang
_STEPS = 20  # whose median is the usual seconds of a step
_NAMED = 8  # ranks at most
NAMING = 64  # ranks that look for the stalled one: all of 4,096 would open 17 million files at once, twice
HUNG_EXIT_CODE = 86


def group_seconds(hang_seconds: float, storage_seconds: float) -> float:
    """Return the timeout of collectives in a run. None expires before the watchdog, which names the rank that is
    waited for, unless a usual step takes more than half an hour (`_MEDIANS`)."""
    return max(_OPENING, hang_seconds + storage_seconds) + 60 * _BEAT


class PhaseTimeout:
    """Limit on the time that a rank may stay in one phase of a step.

    The first two steps of every start compile, tune kernels and start the workers: half an hour, as for a checkpoint.
    Otherwise `hang_seconds`, or 10 times the usual step of this start where that is longer: a large model's update on
    few GPUs takes minutes. While clips or other ranks are waited for, `storage_seconds` more: a server may be down
    that long."""

    def __init__(self, hang_seconds: float, storage_seconds: float = 0.0):
        self.hang_seconds, self.storage_seconds = hang_seconds, storage_seconds
        self._first: int | None = None
        self._at = (0, PHASES[0], 0.0)
        self._steps: deque[float] = deque(maxlen=_STEPS)  # seconds of each, without checkpoints
        self._spent = 0.0  # in the step under way

    def limit(self, step: int, phase: str, now: float) -> tuple[float, str]:
        """Begin a phase of a step. Returns its limit in seconds, and the limit with its reason as text."""
        before, last, since = self._at
        self._first = step if self._first is None else self._first
        self._at = (step, phase, now)
        if last not in _UNHURRIED:
            self._spent += now - since
        if phase == PHASES[0]:
            if before > self._first:
                self._steps.append(self._spent)
            self._spent = 0.0
        # after a rollback nothing is compiled again
        if phase in _UNHURRIED or (step <= self._first + 1 and not self._steps):
            return _LONG_PHASE, f"{_LONG_PHASE:g} s for a checkpoint or the first two steps of a start"
        usual = median(self._steps) if self._steps else 0.0
        if _MEDIANS * usual > self.hang_seconds:
            return _MEDIANS * usual, f"{_MEDIANS} times the {usual:.1f} s that a step usually takes"
        words = f"faults.hang_seconds={self.hang_seconds:g}"
        if self.storage_seconds and phase in ("data", "meeting"):
            return self.hang_seconds + self.storage_seconds, f"{words} and data.patience={self.storage_seconds:g}"
        return self.hang_seconds, words


class Watchdog:
    """Watchdog of one start; the training thread calls `at(step, phase)`, which costs nothing.

    stop: called, from the watchdog's thread, with the reason why the run should save a checkpoint and end."""

    def __init__(
        self,
        folder: Path,
        process: ProcessInfo,
        hang_seconds: float,
        stop: Callable[[str], None] = lambda _: None,
        storage_seconds: float = 0.0,
    ):
        self.folder, self.process, self._stop = folder / "ranks", process, stop
        self.timeout = PhaseTimeout(hang_seconds, storage_seconds)
        self.folder.mkdir(exist_ok=True)
        self._run = _identity(folder)
        # step, phase, when it began, its bound: one object, since two threads look at it
        self._where = (0, PHASES[0], time.monotonic(), (_OPENING, f"{_OPENING / 3600:g} hours until the data is open"))
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._first: int | None = None
        self._beats = 0
        # start of the wait; when the others' files were read; their heartbeats
        self._seen: tuple[float, float, dict[int, dict]] = (-1.0, 0.0, {})
        self._complained = False
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # for the file: both threads write it
        self._write("running")
        threading.Thread(target=self._watch, daemon=True).start()

    def opened(self) -> None:
        """Note that the data is open on all ranks: what follows has the time limit of a first step."""
        self._where = (0, PHASES[0], time.monotonic(), (_LONG_PHASE, "half an hour before the first step"))

    def at(self, step: int, phase: str) -> None:
        """Begin a phase of a step on this rank."""
        now = time.monotonic()
        self._first = step if self._first is None else self._first
        if step > self._first + 1:  # the first one compiles, and starts the workers
            decay = DECAY if phase == PHASES[0] else 1.0
            if self._where[1] != ASIDE:
                self._seconds[self._where[1]] += now - self._where[2]
            self._seconds = {name: decay * seconds for name, seconds in self._seconds.items()}
        self._where = (step, phase, now, self.timeout.limit(step, phase, now))

    def book(self, seconds: float, phase: str, taken_from: str) -> None:
        """Count these seconds of a GPU under `phase` instead of `taken_from`, whose wait included them."""
        if self._first is not None and self._where[0] > self._first + 1:
            self._seconds[phase] += seconds
            self._seconds[taken_from] -= seconds

    def end(self, state: str) -> None:
        """Stop watching, with a last state: 'done', 'stopped by ...', 'failed' (also because of another rank)."""
        with self._lock:
            self._stopped.set()
        self._update(state)

    def stalled_ranks(self, earlier: dict[int, dict] | None = None) -> str:
        """Return a text naming the ranks that this rank waited for: those that are silent without having stopped, are
        absent, or lag behind it.

        earlier: the heartbeats two beats ago; default: they are read now, and again after two beats."""
        if self.process.rank >= NAMING:
            return f"those that the ranks below {NAMING} name"
        if earlier is None:
            earlier = self._others()
            time.sleep(2 * _BEAT)
        beats = self._others()
        silent = [
            rank
            for rank, beat in beats.items()
            if beat["state"] == "running" and beat["beats"] == earlier.get(rank, {}).get("beats")
        ]
        behind = [rank for rank, beat in beats.items() if _order(beat) < self._order()]
        absent = [rank for rank in range(self.process.world_size) if rank not in beats and rank != self.process.rank]
        if not (named := silent or absent or behind):
            return f"no rank in particular: all others are at step {self._where[0]} in {self._where[1]}, or further"
        texts = [_rank_text(rank, beats.get(rank)) for rank in sorted(named)[:_NAMED]]
        more = [f"{len(named) - _NAMED} more"] if len(named) > _NAMED else []
        return "; ".join([*texts, *more])

    def _watch(self) -> None:
        """Write heartbeats and check progress, in the watchdog's thread; if it fails, the run stops."""
        while not self._stopped.wait(_BEAT):
            try:
                with self._lock:
                    if self._stopped.is_set():
                        return
                    self._update("running")
                self._check()
            except Exception as error:
                self._stop(
                    f"the failure of the watchdog of rank {self.process.rank} ({type(error).__name__}: {error})"
                )
                raise

    def _update(self, state: str) -> None:
        """Write this rank's heartbeat. A missing run folder ends the run; a full disk is the training's to handle."""
        try:
            if _identity(self.folder.parent) != self._run:  # a checkpoint may have made it anew
                self._stop(f"its run folder {self.folder.parent}, which was moved or deleted")
                return
            self.folder.mkdir(exist_ok=True)
            self._write(state)
        except OSError as error:
            if not self._complained:
                sys.stderr.write(f"{self.folder}: rank {self.process.rank}'s heartbeat cannot be written: {error}\n")
            self._complained = True

    def _check(self) -> None:
        step, phase, since, (bound, reason) = self._where
        now = time.monotonic()
        if self.process.world_size == 1 or now - since < bound - 2 * _BEAT:
            return
        if self._seen[0] != since:
            self._seen = (since, now, self._others() if self.process.rank < NAMING else {})
        elif now - since > bound and now - self._seen[1] > 1.5 * _BEAT:
            named = self.stalled_ranks(self._seen[2])
            sys.stderr.write(
                f"\nrank {self.process.rank} waited {now - since:.0f} s at step {step} in {phase}, more than {reason}"
                f", for: {named}\n"
            )
            sys.stderr.flush()
            self._update("failed")
            os._exit(HUNG_EXIT_CODE)

    def _others(self) -> dict[int, dict]:
        """Return the heartbeats of the other ranks, where readable."""
        beats = {}
        for rank in range(self.process.world_size):
            file = self.folder / f"{rank:05d}"
            if rank != self.process.rank:
                with suppress(OSError, ValueError):  # missing, or damaged and of an earlier start
                    beats[rank] = json_object(file)
        return beats

    def _order(self) -> tuple[int, int]:
        return self._where[0], PHASES.index(self._where[1])

    def _write(self, state: str) -> None:
        self._beats += 1
        beat = {
            "state": state,
            "step": self._where[0],
            "phase": self._where[1],
            "time": time.time(),
            "progress": time.time() - (time.monotonic() - self._where[2]),
            "beats": self._beats,
            "host": platform.node(),
            "pid": os.getpid(),
            "seconds": self._seconds,
            "waiting": [wait._asdict() for wait in patience.all_waits()[:_NAMED]],  # for shards
        }
        # not synced: 500 ranks would sync 100 times a second, and after a reboot nobody needs them
        replace_file(self.folder / f"{self.process.rank:05d}", json.dumps(beat), durable=False)


def _rank_text(rank: int, beat: dict | None) -> str:
    if beat is None:
        return f"rank {rank}, which left no word"
    seconds = beat["time"] - beat["progress"]  # by its own clock
    where = f"step {beat['step']} in {beat['phase']} for {seconds:.0f} s"
    return f"rank {rank} on {beat['host']} (pid {beat['pid']}), last seen at {where}"


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return device and inode of a folder; None if there is none of this name."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _order(beat: dict) -> tuple[int, int]:
    return beat["step"], PHASES.index(beat["phase"])
