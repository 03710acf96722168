"""Processes of this host: a pool of workers that survives a crash on one input, and the ranks of a run as srun would
start them."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tgm_scale.runtime.launch import in_step
from tgm_scale.runtime.network import free_port

_AHEAD = 4  # results per worker that may wait: enough that one slow input does not idle the others


class Crashed(Exception):
    """The worker process for this input died (a fault in native code, or killed for its memory)."""


class OrderedPool:
    """`map` over processes, with results in order and a bounded number in flight. Processes are spawned: they inherit
    nothing from the caller's threads, and import only what `function` needs."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._start(workers)

    def map(self, function: Callable[..., Any], inputs: Iterable[tuple]) -> Iterator[Any]:
        """Yield the result of `function(*input)` for each input, or the exception that it raised (`Crashed`
        included)."""
        running: deque[tuple[tuple, Future]] = deque()
        for item in inputs:
            running.append((item, self._submit(function, item)))
            if len(running) == self._workers * _AHEAD:
                yield self._next(function, running)
        while running:
            yield self._next(function, running)

    def _submit(self, function: Callable[..., Any], item: tuple) -> Future:
        """Submit an input. A pool broken by an earlier input refuses it; that error, too, is reported in its turn."""
        try:
            return self._pool.submit(function, *item)
        except BrokenProcessPool as broken:
            refused: Future = Future()
            refused.set_exception(broken)
            return refused

    def _next(self, function: Callable[..., Any], running: deque[tuple[tuple, Future]]) -> Any:
        first, future = running.popleft()
        try:
            return future.result()
        except BrokenProcessPool:
            result = self._retry_alone(function, first)
            self._pool = self._start(self._workers)
            again = [(item, self._submit(function, item)) for item, _ in running]
            running.clear()
            running.extend(again)
            return result
        except Exception as error:
            return error

    def _retry_alone(self, function: Callable[..., Any], item: tuple) -> Any:
        """Run one input in a process of its own, to learn whether it causes the crash."""
        with self._start(1) as pool:
            try:
                return pool.submit(function, *item).result()
            except BrokenProcessPool:
                return Crashed("its process died twice")
            except Exception as error:
                return error

    @staticmethod
    def _start(workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=end_with_parent)

    def __enter__(self) -> OrderedPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def own_cores() -> int:
    """Return the number of this process's cores: a task of srun has its own, a process of torchrun a share of the
    node's."""
    seen = len(os.sched_getaffinity(0))
    of_task = int(os.environ.get("SLURM_CPUS_PER_TASK") or seen) if in_step(os.environ) else seen
    return max(1, min(of_task, seen) // int(os.environ.get("LOCAL_WORLD_SIZE") or 1))


def end_with_parent() -> None:
    """Exit when the parent is gone (a killed parent closes no queue that its workers wait on), and leave Ctrl-C to
    it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def unwinding() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C within this context, instead of dying at once: code that has started other
    processes then ends them on the way out."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:  # SIGHUP is ignored under nohup
                before[number] = signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class LocalRun:
    """Processes of one run, each with its rank; a context manager that starts them, and at whose end none is left.

    command: command line of each process; log: file to which all write; variables: additional environment; limit:
    bytes of private memory per process (RLIMIT_DATA). Each process leads a group, which is killed at the end."""

    def __init__(
        self,
        command: list[str],
        processes: int,
        log: Path,
        variables: dict[str, str] | None = None,
        limit: int | None = None,
    ):
        self._command, self._log, self._limit = command, log, limit
        common = {
            "WORLD_SIZE": processes,
            "LOCAL_WORLD_SIZE": processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": free_port(),
        }
        own = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in range(processes)]
        shared = {"OMP_NUM_THREADS": "1", **os.environ, **(variables or {})}
        self._environments = [shared | {name: str(value) for name, value in of_rank.items()} for of_rank in own]
        self.ranks: list[subprocess.Popen] = []
        self.began = 0.0

    def _start(self) -> None:
        self.began = time.time()
        for environment in self._environments:
            with self._log.open("a", encoding="utf-8") as stream:
                started = subprocess.Popen(
                    self._command, env=environment, stdout=stream, stderr=stream, start_new_session=True
                )
            self.ranks.append(started)
            if self._limit is not None:
                resource.prlimit(started.pid, resource.RLIMIT_DATA, (self._limit, self._limit))

    def kill(self, ranks: slice = slice(None)) -> None:
        for process in self.ranks[ranks]:
            process.send_signal(signal.SIGKILL)

    def wait(self) -> list[int]:
        """Wait for all processes and return their exit codes."""
        return [process.wait() for process in self.ranks]

    def codes(self) -> list[int | None]:
        """Return exit codes; None for a process that has not ended, -N for one that signal N has ended."""
        return [process.poll() for process in self.ranks]

    def running(self) -> bool:
        """Return whether any process is still running."""
        return any(process.poll() is None for process in self.ranks)

    def ended(self) -> bool:
        """Return whether any process has ended."""
        return any(process.poll() is not None for process in self.ranks)

    def __enter__(self) -> LocalRun:
        with ExitStack() as stack:
            stack.enter_context(unwinding())
            stack.callback(self._end)
            self._start()
            self._at_the_end = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._at_the_end.close()

    def _end(self) -> None:
        for process in self.ranks:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the data workers of a rank that has ended
        self.wait()
