"""Signals that ask a run to stop: noted at once, acted on together with all ranks at the next step."""

from __future__ import annotations

import signal

REQUEUE_EXIT_CODE = 85  # the batch script requeues the job on it; no shell, Python or SLURM code has this number


class StopRequest:
    """Notes SIGTERM and SIGUSR1 (sent by SLURM before a time limit)."""

    def __init__(self) -> None:
        self.signal: str | None = None
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = signal.Signals(number).name
