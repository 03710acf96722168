"""Memory for batches of pixels that all processes of a loader share."""

from __future__ import annotations

import math
import mmap
import os
import sys
import tempfile
import weakref
from contextlib import suppress
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch


class SharedBatches:
    """Memory for batches of pixels, uint8 of one shape, shared by all processes that it is sent to when they start.

    An anonymous file that grows when it has to: it leaves nothing behind when a process is killed, and the size of
    /dev/shm (64 MB in a container by default) does not bound it.

    In a process that works on a GPU each batch's memory is pinned once, when it is first taken: the GPU reads it by
    itself. Who lets it read without waiting keeps the tensor until the copy is done (`data.to_device`)."""

    def __init__(self, shape: tuple[int, ...], file: int | None = None):
        self._shape, self._file = shape, _anonymous_file() if file is None else file
        pages = -(-math.prod(shape) // mmap.ALLOCATIONGRANULARITY)
        self._size = pages * mmap.ALLOCATIONGRANULARITY
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._pinned: list[int] = []  # addresses
        self._may_pin = True

    def take(self) -> tuple[int, torch.Tensor]:
        """The number and the pixels of a free batch; when no tensor of it is left, it is reused."""
        if not self._free:
            os.ftruncate(self._file, (len(self._maps) + 1) * self._size)
            place = len(self._maps)
            self._pin(self._array(place))
        else:
            place = self._free.pop()
        array = self._array(place)
        # holds on to this object too: it outlives its last array, and so can release what it pinned
        weakref.finalize(array, self._give_back, place).atexit = False
        return place, torch.from_numpy(array)

    def _give_back(self, place: int) -> None:
        self._free.append(place)

    def pixels(self, place: int) -> torch.Tensor:
        """Of the batch of this number, which another process took."""
        return torch.from_numpy(self._array(place))

    def _array(self, place: int) -> np.ndarray:
        if place not in self._maps:
            self._maps[place] = mmap.mmap(self._file, self._size, offset=place * self._size)
        return np.frombuffer(self._maps[place], np.uint8, math.prod(self._shape)).reshape(self._shape)

    def __reduce__(self) -> tuple:
        return _received, (self._shape, reduction.DupFd(self._file))

    def _pin(self, array: np.ndarray) -> None:
        """Where this process works on a GPU. What cannot be pinned is copied by way of the driver's own memory, which
        the host waits for."""
        if not self._may_pin or not torch.cuda.is_initialized():
            return
        code = int(torch.cuda.cudart().cudaHostRegister(array.ctypes.data, self._size, 0))
        if code == 0:
            self._pinned.append(array.ctypes.data)
            return
        self._may_pin = False
        with suppress(RuntimeError):
            torch.zeros(1, device="cuda")  # the next kernel would report this error as its own: this one does
        print(
            f"warning: batches of {self._size / 1e6:.0f} MB cannot be pinned (CUDA error {code}): training waits for "
            "each copy to the GPU. Is there room for locked memory (ulimit -l, the job's memory limit)?",
            file=sys.stderr,
            flush=True,
        )

    def __del__(self) -> None:
        for address in self._pinned:  # before it is unmapped: what is mapped there next would pass for pinned
            torch.cuda.cudart().cudaHostUnregister(address)
        os.close(self._file)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _received(shape: tuple[int, ...], file: Any) -> SharedBatches:
    return SharedBatches(shape, file.detach())
