"""A trial as one step of a SLURM job, on all its nodes. slurm/lib/steps.sh, which documents the files, starts and
kills it: this process may be in a container, which has no srun."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tgm_scale.runs.faults import RunStopped
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.processes import unwinding

_LOOK = 0.2  # seconds between checks
_TAKEN = 60.0  # seconds in which slurm/launch.sh takes a request; it checks twice a second
_KILLED = 300.0  # seconds in which a step ends: SLURM gives up on an undying process after UnkillableStepTimeout (60)


class StepRun:
    """Step of a trial, like runtime.processes.LocalRun: a context manager that starts it, and at whose end it has
    ended.

    words: arguments after the name of python; steps: folder in which steps are requested; folder: of the trial, for
    its output.log and exit codes; limit: bytes of private memory per process."""

    def __init__(self, words: list[str], steps: Path, folder: Path, limit: int | None = None):
        self._steps, self._folder = steps, folder
        kibibytes = "unlimited" if limit is None else str(limit // 1024)
        self._text = "".join(f"{word}\0" for word in (str(folder), kibibytes, *words))

    def codes(self) -> list[int | None]:
        """Return the exit codes of the processes that have ended by themselves."""
        found: list[int | None] = []
        for file in sorted(self._folder.glob("code-*")):
            with suppress(ValueError):  # not written yet
                found.append(int(file.read_text(encoding="utf-8")))
        return found

    def ended(self) -> bool:
        """Return whether any process has ended."""
        return self._has_ended() or bool(self.codes())

    def _has_ended(self) -> bool:
        return (self._steps / "ended").is_file()

    def __enter__(self) -> StepRun:
        with ExitStack() as stack:
            stack.enter_context(unwinding())
            for name in ("stop", "ended"):
                (self._steps / name).unlink(missing_ok=True)
            stack.callback(self._end)
            replace_file(self._steps / "wanted", self._text)
            self._at_the_end = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._at_the_end.close()

    def _end(self) -> None:
        wanted = self._steps / "wanted"
        if not _within(_TAKEN, lambda: not wanted.is_file()):
            wanted.unlink(missing_ok=True)
            raise ValueError(
                f"--nodes: {wanted} is not taken in {_TAKEN:g} s: slurm/tune.sh does that; leave --nodes out"
            )
        (self._steps / "stop").touch()
        if not _within(_KILLED, self._has_ended):
            raise RunStopped(f"{self._folder}: its step goes on {_KILLED:g} s after SIGKILL: a node is broken")


def _within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Return whether the condition becomes true before the seconds are over."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(_LOOK)
    return True
