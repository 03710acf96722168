"""Worker processes that decode samples ahead: any worker takes the next sample, and they are handed over in order.

Pixels are decoded right into the batch's memory, which all processes share; what is said of them is pickled. A clip of
16 frames at 224 is 2.4 MB, and each copy of it costs 2 % of its decoding."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import signal
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import torch

from tgm_scale.data.samples import Sample, Samples
from tgm_scale.runtime.processes import end_with_parent


def decode_ahead(
    samples: Samples, positions: Iterable[int], batch: int, workers: int, ahead: int
) -> Iterator[tuple[list[Sample], torch.Tensor]]:
    """The samples at these positions, in their order, `batch` at a time, with their pixels, uint8 [batch, N, T, H, W,
    3]; from `workers` processes that have up to `ahead` samples in work or ready. The positions make whole batches.

    Raises what decoding raises, and RuntimeError where a worker died."""
    sampling = samples.sampling
    clip = (sampling.frames, sampling.size, sampling.size, 3)
    memory = SharedBatches((batch, sampling.repeated_augmentation, *clip))
    # A fork of this process would carry its GPU context and its threads' locks; a fork server is small and has the
    # imports done, so a worker starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(samples, memory))
    under_way: deque[Future[Sample]] = deque()
    begun: deque[torch.Tensor] = deque()  # pixels of batches that are not handed over
    done: list[Sample] = []
    processes = pool._processes  # filled as tasks come; the pool itself forgets it when it ends
    try:
        for number, position in enumerate(positions):
            if number % batch == 0:
                place, pixels = memory.take()
                begun.append(pixels)
            if len(under_way) == ahead:
                done.append(under_way.popleft().result())
            with _shielded() if len(processes) < workers else nullcontext():  # it may start one
                under_way.append(pool.submit(_decode, position, place, number % batch))
            if len(done) == batch:
                yield done, begun.popleft()
                done = []
        while under_way:
            done.append(under_way.popleft().result())
            if len(done) == batch:
                yield done, begun.popleft()
                done = []
    except BrokenProcessPool as error:
        pool.shutdown(wait=True)  # it then knows the exit codes
        raise _explained(processes.values()) from error
    finally:
        for process in processes.values():
            process.kill()  # one may be in a long decode, or wait for a server that is down
        pool.shutdown(wait=True, cancel_futures=True)


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


_worker: tuple[Samples, SharedBatches]  # of a worker process


def _begin(samples: Samples, memory: SharedBatches) -> None:
    global _worker
    end_with_parent()
    torch.set_num_threads(1)
    _worker = samples, memory


def _decode(position: int, place: int, row: int) -> Sample:
    samples, memory = _worker
    return samples.read(position, memory.pixels(place)[row])


@contextmanager
def _shielded() -> Iterator[None]:
    """Processes started within never see SIGUSR1, which schedulers send to a whole job so that it saves itself: the
    trainer answers it. For this process the signal waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explained(processes: Iterable[BaseProcess]) -> RuntimeError:
    """A worker's death with its likely cause."""
    codes = {process.exitcode for process in processes} - {None}
    died = codes - {-signal.SIGTERM} or codes  # SIGTERM is how the pool then ends the others
    causes = {
        -signal.SIGKILL: "killed, as the kernel does when memory is full: lower data.workers",
        -signal.SIGSEGV: "crashed in the video decoder",
    }
    what = "; ".join(f"exit code {code}: {causes.get(code or 0, 'its own output says why')}" for code in died)
    return RuntimeError(f"a data worker died ({what})")
