"""Seconds that a device spends on part of its work, measured without waiting for it."""

from __future__ import annotations

import time
from typing import Any

import torch


class DeviceClock:
    """A context manager that times the work queued within it: on a GPU by CUDA events (the host's clock would measure
    launches), on a CPU by the host's clock."""

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._open: Any = None
        self._spans: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._open = self._now()

    def __exit__(self, *_: object) -> None:
        self._spans.append((self._open, self._now()))

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        return torch.cuda.current_stream().record_event(torch.cuda.Event(enable_timing=True))

    def seconds(self) -> float:
        """Return the seconds of work finished since the last call. Work still queued is counted by a later call."""
        if not self._on_gpu:
            spans, self._spans = self._spans, []
            return sum(end - begin for begin, end in spans)
        done = [end.query() for _, end in self._spans]
        finished = [span for span, is_done in zip(self._spans, done) if is_done]
        self._spans = [span for span, is_done in zip(self._spans, done) if not is_done]
        return sum(begin.elapsed_time(end) for begin, end in finished) / 1e3
