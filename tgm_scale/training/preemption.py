"""Signals that ask a run to stop: recorded at once, handled by all ranks together at the next step."""

from __future__ import annotations

import math
import os
import signal
import time
from contextlib import suppress

REQUEUE_EXIT_CODE = 85  # the batch script requeues the job on it; no shell, Python or SLURM code has this number
_SAME = 1.0  # seconds: a launcher forwards Ctrl-C to processes that had it from the terminal already


class StopRequest:
    """Record of requests to stop: SIGTERM, SIGUSR1 (sent by SLURM before a time limit), SIGHUP (a closed terminal;
    ignored under nohup), the first Ctrl-C, and a limit of wall-clock time.

    reports: whether a signal is reported when it comes, since a step may take minutes more."""

    def __init__(self, max_minutes: float | None = None, reports: bool = False) -> None:
        self._reports = reports
        self.end = "stops with a checkpoint after this step or the next"  # what a stop does, as printed
        self.signal: str | None = None
        self._noted = -math.inf
        self._end = math.inf if max_minutes is None else time.monotonic() + 60 * max_minutes
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def ask(self, reason: str) -> None:
        """Request a stop for another reason, from any thread."""
        self.signal = self.signal or reason

    def asked(self) -> bool:
        return self.signal is not None or time.monotonic() > self._end

    @property
    def reason(self) -> str:
        """Source of the request, as known on this rank."""
        if self.signal is not None:
            return self.signal
        return "train.max_minutes" if self.asked() else "another rank's signal"

    def _note(self, number: int, _frame: object) -> None:
        again = time.monotonic() - self._noted > _SAME
        if number == signal.SIGINT and self.signal == "SIGINT" and again:
            raise KeyboardInterrupt  # does not wait for a checkpoint
        if self._reports and self.signal is None:
            at_once = ", or at once by another Ctrl-C" if number == signal.SIGINT else ""
            said = f"{signal.Signals(number).name}: {self.end}{at_once}\n"
            with suppress(OSError):  # the terminal is closed
                os.write(2, said.encode())  # print's buffer may be in use where the signal comes
        self.signal, self._noted = signal.Signals(number).name, time.monotonic()
