"""Memory for batches of pixels that all processes of a loader share."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
import weakref
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch


class SharedBatches:
    """Memory for batches of pixels, uint8 of one shape, shared by all processes that it is sent to when they start.

    An anonymous file that grows when it has to: it leaves nothing behind, whoever is killed, and the size of /dev/shm
    (64 MB in a container unless told otherwise) does not bound it."""

    def __init__(self, shape: tuple[int, ...], file: int | None = None):
        self._shape, self._file = shape, _anonymous_file() if file is None else file
        pages = -(-math.prod(shape) // mmap.ALLOCATIONGRANULARITY)
        self._size = pages * mmap.ALLOCATIONGRANULARITY
        self._maps: dict[int, mmap.mmap] = {}
        self._free: list[int] = []

    def take(self) -> tuple[int, torch.Tensor]:
        """The number and the pixels of a batch that is nobody's; when no tensor of it is left, it is used again."""
        if not self._free:
            os.ftruncate(self._file, (len(self._maps) + 1) * self._size)
            self._free.append(len(self._maps))
        place = self._free.pop()
        array = self._array(place)
        weakref.finalize(array, self._free.append, place).atexit = False
        return place, torch.from_numpy(array)

    def pixels(self, place: int) -> torch.Tensor:
        """Of the batch of this number, which another process took."""
        return torch.from_numpy(self._array(place))

    def _array(self, place: int) -> np.ndarray:
        if place not in self._maps:
            self._maps[place] = mmap.mmap(self._file, self._size, offset=place * self._size)
        return np.frombuffer(self._maps[place], np.uint8, math.prod(self._shape)).reshape(self._shape)

    def __reduce__(self) -> tuple:
        return _received, (self._shape, reduction.DupFd(self._file))

    def __del__(self) -> None:
        os.close(self._file)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _received(shape: tuple[int, ...], file: Any) -> SharedBatches:
    return SharedBatches(shape, file.detach())
