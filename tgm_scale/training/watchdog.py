"""A dead or hung rank is named, and the others stop, within a minute.

Every rank tells in RUN/ranks/NNNNN where it is (step and phase), from a thread that lives beside the training. Where a
rank makes no progress for too long, its thread reads the others' files: the ranks that are furthest behind, or whose
own thread is silent, are those that all wait for. The seconds that each rank spends in each phase stand there, too.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from pathlib import Path

from tgm_scale.runtime.distributed import Place
from tgm_scale.training.run_folder import replace_file

PHASES = ("data", "guidance", "meeting", "update", "checkpoint")
_BEAT = 5.0  # seconds from one look to the next
_PATIENT = 1800.0  # seconds for a checkpoint, and for the first step with its compilation
_FADING = 0.98  # of the seconds that are told, by step: they are of the last 50 steps or so
HUNG_EXIT_CODE = 86


class Watchdog:
    """Started once a run; `at(step, phase)` is called by the training thread and costs nothing."""

    def __init__(self, folder: Path, place: Place, hang_seconds: float):
        self.folder, self.place, self.hang_seconds = folder / "ranks", place, hang_seconds
        self.folder.mkdir(exist_ok=True)
        self._where = (0, PHASES[0])
        self._since = time.monotonic()
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._first: int | None = None
        self._patient = True
        self._stopped = threading.Event()
        self._lock = threading.Lock()  # of the file: both threads write it
        self._write("running")
        threading.Thread(target=self._watch, daemon=True).start()

    def at(self, step: int, phase: str) -> None:
        """This rank begins a phase of a step."""
        now = time.monotonic()
        self._first = step if self._first is None else self._first
        if step > self._first + 1:  # the first one compiles, and starts the workers
            fading = _FADING if phase == PHASES[0] else 1.0
            self._seconds[self._where[1]] += now - self._since
            self._seconds = {name: fading * seconds for name, seconds in self._seconds.items()}
        self._patient = phase == "checkpoint" or self._where[0] == 0
        self._where, self._since = (step, phase), now

    def end(self, state: str) -> None:
        """Leave the watch: 'done', or 'failed' for a rank that stops because of another."""
        with self._lock:
            self._stopped.set()
        self._write(state)

    def culprits(self, grace: float = 2 * _BEAT) -> str:
        """The ranks that this rank waited for, in words: those that did not say they stopped, or lag behind."""
        time.sleep(grace)
        beats = {int(file.name): json.loads(file.read_text()) for file in self.folder.glob("[0-9]" * 5)}
        now = time.time()
        silent = [rank for rank, beat in beats.items() if beat["state"] == "running" and now - beat["time"] > grace]
        first = min(_order(beat) for beat in beats.values())
        behind = [rank for rank, beat in beats.items() if _order(beat) == first]
        named = silent or behind
        return "; ".join(
            f"rank {rank} on {beats[rank]['host']} (pid {beats[rank]['pid']}), last seen at step "
            f"{beats[rank]['step']} in {beats[rank]['phase']} {now - beats[rank]['progress']:.0f} s ago"
            for rank in sorted(named)[:8]
        )

    def _watch(self) -> None:
        while not self._stopped.wait(_BEAT):
            with self._lock:
                if self._stopped.is_set():
                    return
                self._write("running")
            waited = time.monotonic() - self._since
            if self.place.world_size > 1 and waited > (_PATIENT if self._patient else self.hang_seconds):
                step, phase = self._where
                named = self.culprits(grace=0)
                sys.stderr.write(
                    f"\nrank {self.place.rank} waited {waited:.0f} s at step {step} in {phase}, more than "
                    f"faults.hang_seconds={self.hang_seconds:g}, for: {named}\n"
                )
                sys.stderr.flush()
                self._write("failed")
                os._exit(HUNG_EXIT_CODE)

    def _write(self, state: str) -> None:
        beat = {
            "state": state,
            "step": self._where[0],
            "phase": self._where[1],
            "time": time.time(),
            "progress": time.time() - (time.monotonic() - self._since),
            "host": platform.node(),
            "pid": os.getpid(),
            "seconds": self._seconds,
        }
        replace_file(self.folder / f"{self.place.rank:05d}", json.dumps(beat))


def _order(beat: dict) -> tuple[int, int]:
    return beat["step"], PHASES.index(beat["phase"])
