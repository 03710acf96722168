"""Worker processes that decode samples ahead: any worker takes the next sample, and they are handed over in order.

Pixels travel through memory that all processes share; what is said of them is pickled. A clip of 16 frames at 224 is
2.4 MB: a pipe would cost it two copies, and a shared block of its own new pages and a handshake for each clip."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import signal
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from multiprocessing import reduction
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from tgm_scale.data.samples import Sample, Samples
from tgm_scale.runtime.processes import end_with_parent


def decode_ahead(samples: Samples, positions: Iterable[int], workers: int, ahead: int) -> Iterator[Sample]:
    """The samples at these positions, in their order, from `workers` processes that have up to `ahead` of them in work
    or ready. A sample's pixels are good until the next one is asked for: they lie in memory that is used again.

    Raises what decoding raises, and RuntimeError where a worker died."""
    sampling = samples.sampling
    clip = (sampling.frames, sampling.size, sampling.size, 3)
    memory = SharedClips((ahead + 1, sampling.repeated_augmentation, *clip))
    # A fork of this process would carry its GPU context and its threads' locks; a fork server is small and has the
    # imports done, so a worker starts in milliseconds.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(samples, memory))
    under_way: deque[tuple[int, Future[Sample]]] = deque()
    processes = pool._processes  # filled as tasks come; the pool itself forgets it when it ends
    try:
        for number, position in enumerate(positions):
            first = _result(under_way, memory) if len(under_way) == ahead else None
            slot = number % (ahead + 1)
            with _shielded() if len(processes) < workers else nullcontext():  # it may start one
                under_way.append((slot, pool.submit(_decode, position, slot)))
            if first is not None:
                yield first
        while under_way:
            yield _result(under_way, memory)
    except BrokenProcessPool as error:
        pool.shutdown(wait=True)  # it then knows the exit codes
        raise _explained(processes.values()) from error
    finally:
        for process in processes.values():
            process.kill()  # one may be in a long decode, or wait for a server that is down
        pool.shutdown(wait=True, cancel_futures=True)


def _result(under_way: deque[tuple[int, Future[Sample]]], memory: SharedClips) -> Sample:
    slot, future = under_way.popleft()
    sample = future.result()
    sample.videos = list(memory.slots[slot])
    return sample


class SharedClips:
    """Memory for clips, uint8 [slots, *shape], shared by all processes that it is sent to when they start.

    An anonymous file: it leaves nothing behind, whoever is killed, and the size of /dev/shm (64 MB in a container
    unless told otherwise) does not bound it."""

    def __init__(self, shape: tuple[int, ...], file: int | None = None):
        if file is None:
            file = _anonymous_file()
            os.ftruncate(file, torch.Size(shape).numel())
        self._file, self._shape = file, shape
        whole = mmap.mmap(file, torch.Size(shape).numel())
        self.slots = torch.frombuffer(whole, dtype=torch.uint8).view(shape)

    def __reduce__(self) -> tuple:
        return _received, (self._shape, reduction.DupFd(self._file))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("clips")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _received(shape: tuple[int, ...], file: Any) -> SharedClips:
    return SharedClips(shape, file.detach())


_worker: tuple[Samples, SharedClips]  # of a worker process


def _begin(samples: Samples, memory: SharedClips) -> None:
    global _worker
    end_with_parent()
    torch.set_num_threads(1)
    _worker = samples, memory


def _decode(position: int, slot: int) -> Sample:
    samples, memory = _worker
    sample = samples[position]
    for place, video in zip(memory.slots[slot], sample.videos):
        place.copy_(video)
    sample.videos = []
    return sample


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
