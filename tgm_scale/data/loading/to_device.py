"""Memory for batches of pixels, shared by all processes of a loader, and copies of batches from it to a GPU: pinned,
on a separate stream, without blocking the host.

A copy from pinned memory continues after the call has returned, and torch tracks only memory that it pinned itself.
The source of a copy is therefore held here until an event reports the copy's completion: else `SharedBatches` would
reuse the memory, and a worker would overwrite it with the next clips during the copy.

128 clips of 16 frames at 224 are 308 MB: 12 ms at the 25 GB/s of PCIe 4.0 (arithmetic; never run on a GPU).
"""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tgm_scale.contracts import Batch


class SharedBatches:
    """Memory for batches of pixels, uint8 of one shape, shared by all processes that receive it at their start.

    It is an anonymous file that grows on demand: it leaves nothing behind when a process is killed, and is not bounded
    by the size of /dev/shm (64 MB in a container by default).

    In a process that works on a GPU, each batch's memory is pinned once, when it is first taken, so that the GPU
    reads it directly. The caller of an asynchronous copy must keep the tensor until the copy is done (`ToDevice`)."""

    def __init__(self, shape: tuple[int, ...], file: int | None = None):
        self._shape, self._file = shape, _anonymous_file() if file is None else file
        pages = -(-math.prod(shape) // mmap.ALLOCATIONGRANULARITY)
        self._size = pages * mmap.ALLOCATIONGRANULARITY
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._pinned: list[int] = []  # addresses
        self._may_pin = True

    def take(self) -> tuple[int, torch.Tensor]:
        """Return the number and the pixels of a free batch; it is reused once no tensor of it is left."""
        if not self._free:
            os.ftruncate(self._file, (len(self._maps) + 1) * self._size)
            place = len(self._maps)
            self._pin(self._array(place))
        else:
            place = self._free.pop()
        array = self._array(place)
        # keeps this object alive, too: it outlives its last array, and so can release what it pinned
        weakref.finalize(array, self._give_back, place).atexit = False
        return place, torch.from_numpy(array)

    def _give_back(self, place: int) -> None:
        self._free.append(place)

    def pixels(self, place: int) -> torch.Tensor:
        """Return the pixels of the batch of this number, which another process took."""
        return torch.from_numpy(self._array(place))

    def _array(self, place: int) -> np.ndarray:
        if place not in self._maps:
            self._maps[place] = mmap.mmap(self._file, self._size, offset=place * self._size)
        return np.frombuffer(self._maps[place], np.uint8, math.prod(self._shape)).reshape(self._shape)

    def __reduce__(self) -> tuple:
        return _received, (self._shape, reduction.DupFd(self._file))

    def _pin(self, array: np.ndarray) -> None:
        """Pin the array if this process works on a GPU. Memory that cannot be pinned is copied through the driver's
        own buffer, and the host waits for that."""
        if not self._may_pin or not torch.cuda.is_initialized():
            return
        code = int(torch.cuda.cudart().cudaHostRegister(array.ctypes.data, self._size, 0))
        if code == 0:
            self._pinned.append(array.ctypes.data)
            return
        self._may_pin = False
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # clears the error, which the next kernel would otherwise report as its own
        print(
            f"warning: batches of {self._size / 1e6:.0f} MB cannot be pinned (CUDA error {code}): training waits for "
            "each copy to the GPU. Is there room for locked memory (ulimit -l, the job's memory limit)?",
            file=sys.stderr,
            flush=True,
        )

    def __del__(self) -> None:
        for address in self._pinned:  # before unmapping: a later mapping there would pass for pinned
            torch.cuda.cudart().cudaHostUnregister(address)
        os.close(self._file)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _received(shape: tuple[int, ...], file: Any) -> SharedBatches:
    return SharedBatches(shape, file.detach())


MAX_PENDING = 4  # copies of micro batches: 1.2 GB of GPU memory at 128 clips each


class PendingCopies:
    """Batches that are still being copied, MAX_PENDING at most."""

    def __init__(self) -> None:
        self._copies: deque[tuple[torch.cuda.Event, Batch]] = deque()

    def hold(self, done: torch.cuda.Event, source: Batch) -> None:
        """Keep the source's memory until the copy is done, and release those of finished copies; they finish in order.

        With too many copies in flight the host waits for the first one: for the bus, never for the GPU's
        computation."""
        self._copies.append((done, source))
        if len(self._copies) > MAX_PENDING:
            self._copies[0][0].synchronize()
        while self._copies and self._copies[0][0].query():
            self._copies.popleft()


class ToDevice:
    """Transfer of batches to a device: a call returns the batch there, for the stream that is current at the call.

    That stream and the device's default stream may use it: its memory is not reused before both have completed the
    work queued when the last reference to it was dropped."""

    def __init__(self, device: torch.device):
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pending = PendingCopies()
        self._begun: dict[int, tuple[Batch, Callable[[], Batch]]] = {}  # by the id of the batch, which is kept

    def __call__(self, batch: Batch) -> Batch:
        if self._stream is None:
            return batch.to(self.device)
        begun = self._begun.pop(id(batch)) if id(batch) in self._begun else self._begin(batch)
        return begun[1]()

    def numbers(self, tensor: Tensor) -> Tensor:
        """Return a few numbers on the device, for the current stream. torch tracks the memory that it pinned
        itself."""
        return tensor.pin_memory().to(self.device, non_blocking=True) if self._stream is not None else tensor

    def ahead(self, steps: Iterable[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        """Yield the same steps; on a GPU the copies of a step start before the previous step is yielded, and
        overlap with its computation. A batch must not be changed between here and its call."""
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
        # pixels are in pinned memory where possible (`SharedBatches`); the rest is small
        pinned = batch.map(lambda tensor: tensor if tensor.dtype == torch.uint8 else tensor.pin_memory())
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


def _used_by(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    tensor.record_stream(stream)
    return tensor
