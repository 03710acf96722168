"""Copies of batches to a GPU: from pinned memory, on a separate stream, without blocking the host.

A copy from pinned memory runs on after the call has returned, and torch looks after no memory but what it pinned
itself. So what a copy reads from is held here until an event says that the copy is done: else `SharedBatches` would
hand the place out again, and a worker would write the next clips into what is being copied.

128 clips of 16 frames at 224 are 308 MB: 12 ms at the 25 GB/s of PCIe 4.0 (arithmetic; never run on a GPU).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from tgm_scale.contracts import Batch

MAX_PENDING = 4  # copies of micro batches: 1.2 GB of the GPU's memory at 128 clips each


class PendingCopies:
    """Batches that are still being copied, MAX_PENDING at most."""

    def __init__(self) -> None:
        self._copies: deque[tuple[torch.cuda.Event, Batch]] = deque()

    def hold(self, done: torch.cuda.Event, source: Batch) -> None:
        """Keep the source's memory until the copy is done, and let go of those that are; they end in their order.

        Where too many are under way the host waits for the first: for the bus, never for what the GPU computes."""
        self._copies.append((done, source))
        if len(self._copies) > MAX_PENDING:
            self._copies[0][0].synchronize()
        while self._copies and self._copies[0][0].query():
            self._copies.popleft()


class ToDevice:
    """Moves batches to a device: a call gives the batch there, for the stream that is current then.

    That stream and the device's default one may use it: its memory is not taken again before both are past what they
    had been given when the last reference to it went."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pending = PendingCopies()
        self._begun: dict[int, tuple[Batch, Callable[[], Batch]]] = {}  # by the batch's id: it is kept, so that is its

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self.device)
        begun = self._begun.pop(id(batch)) if id(batch) in self._begun else self._begin(batch)
        return begun[1]()

    def numbers(self, tensor: Tensor) -> Tensor:
        """A few numbers on the device, for the current stream. torch keeps what it pinned itself until it is read."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._stream is not None else tensor

    def ahead(self, steps: Iterable[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        """The same steps; on a GPU the copies of a step begin before the step before it is handed over, and run while
        that is computed. A batch must not be changed between here and its call."""
        if self._stream is None:
            yield from steps
            return
        self._begun.clear()
        held: tuple[int, list[Batch]] | None = None
        for step, batches in steps:
            for batch in batches[:MAX_PENDING]:
                self._begun[id(batch)] = self._begin(batch)
            if held is not None:
                yield held
            held = step, batches
        if held is not None:
            yield held

    def _begin(self, batch: Batch) -> tuple[Batch, Callable[[], Batch]]:
        assert self._stream is not None
        pinned = batch.map(_pinned)
        with torch.cuda.stream(self._stream):
            moved = pinned.map(lambda tensor: tensor.to(self.device, non_blocking=True))
            done = self._stream.record_event()
        self._pending.hold(done, pinned)
        return batch, partial(self._hand_over, moved, done)

    def _hand_over(self, moved: Batch, done: torch.cuda.Event) -> Batch:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(done)
        for stream in {current, torch.cuda.default_stream(self.device)}:
            moved.map(partial(_used_by, stream))
        return moved


def _pinned(tensor: Tensor) -> Tensor:
    """Pixels are in pinned memory where that can be had (`SharedBatches`); all else is small."""
    return tensor if tensor.dtype == torch.uint8 else tensor.pin_memory()


def _used_by(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor
