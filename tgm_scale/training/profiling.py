"""`profile.steps`: a trace of a few steps of rank 0, and on a GPU of its memory allocations, in RUN/profile/."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from tgm_scale.config.sections import ProfileConfig
from tgm_scale.runtime.distributed import ProcessInfo

FOLDER = "profile"
_ALLOCATIONS = 1_000_000  # kept in the history: torch's record of more is hundreds of MB


class Profiler:
    """Profiler of the steps that the configuration names, on the main process; it does nothing on the others, or where
    none are named. A trace that cannot be written costs a warning, not the run.

    The record of the GPU's memory is untested: it was never run."""

    def __init__(self, settings: ProfileConfig, folder: Path, process: ProcessInfo):
        self._steps = settings.range() if process.is_main else range(0)
        self._folder, self._on_gpu = folder / FOLDER, process.device.type == "cuda"
        self._trace: Any = None
        self._phase: Any = None
        self._first = 0  # first step of the trace under way

    def turns(self, step: int) -> bool:
        """Return whether a trace begins or ends before this step, counted from 1 as in metrics.jsonl."""
        return (step in self._steps) != (self._trace is not None)

    def turn(self, step: int) -> float:
        """Begin the trace before this step, or write it. Returns the seconds that it took, which belong to no step."""
        began = time.perf_counter()
        if self._trace is None:
            self._begin(step)
        else:
            self.close(step - 1)
        return time.perf_counter() - began

    def at(self, step: int, phase: str) -> None:
        """Mark the beginning of a phase of a step."""
        if self._trace is None:
            return
        self._end_phase()
        self._phase = torch.profiler.record_function(f"step {step}: {phase}")
        self._phase.__enter__()

    def close(self, last: int) -> None:
        """Write the trace under way, if any, with `last` as its last step."""
        if self._trace is None:
            return
        self._end_phase()
        trace, self._trace = self._trace, None
        name = f"steps-{self._first:08d}-{last:08d}"
        try:
            trace.stop()
            self._folder.mkdir(exist_ok=True)
            file = self._folder / f"{name}.json.gz"
            trace.export_chrome_trace(str(file))
            if self._on_gpu:
                torch.cuda.memory._dump_snapshot(str(self._folder / f"{name}-memory.pickle"))
                torch.cuda.memory._record_memory_history(enabled=None)
        except (OSError, RuntimeError) as error:
            print(f"\nwarning: profile.steps: no trace was written: {error}", file=sys.stderr, flush=True)
        else:
            print(f"\nprofile.steps: {file}", file=sys.stderr, flush=True)

    def _begin(self, step: int) -> None:
        self._first = step
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # below it torch 2.13 prints to stderr that a trace begins
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=_ALLOCATIONS)
        # without profile_memory, which on a CPU warns about everything allocated before
        self._trace = torch.profiler.profile(activities=activities, record_shapes=True)
        self._trace.start()

    def _end_phase(self) -> None:
        phase, self._phase = self._phase, None
        if phase is not None:
            phase.__exit__(None, None, None)


def refuse_beyond(settings: ProfileConfig, steps: int) -> None:
    """Raise ValueError where a run of so many steps never reaches the last step to be traced."""
    wanted = settings.range()
    if wanted and wanted[-1] > steps:
        raise ValueError(f"profile.steps={settings.steps}: the run has {steps} steps: name some of these")
