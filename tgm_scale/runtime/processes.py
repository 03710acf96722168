"""A pool of worker processes that end with their parent and survive a crash on one input."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

_AHEAD = 4  # results that may wait for each worker: enough that one slow input does not idle the others


class Crashed(Exception):
    """The process that worked on this input died (a fault in native code, or killed for its memory)."""


class OrderedPool:
    """`map` over processes, results in order, a bounded number in flight. Processes are started afresh (spawn): what
    the caller's threads hold is not copied into them, and they import only what `function` needs."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._start(workers)

    def map(self, function: Callable[..., Any], inputs: Iterable[tuple]) -> Iterator[Any]:
        """`function(*input)` for each input: what it returned, or the exception it raised (`Crashed` included)."""
        running: deque[tuple[tuple, Future]] = deque()
        for item in inputs:
            running.append((item, self._submit(function, item)))
            if len(running) == self._workers * _AHEAD:
                yield self._next(function, running)
        while running:
            yield self._next(function, running)

    def _submit(self, function: Callable[..., Any], item: tuple) -> Future:
        """A pool that an earlier input has broken by now refuses new ones: that, too, is told when its turn comes."""
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
        """One input in a process of its own, to learn whether it is the one that kills."""
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


def end_with_parent() -> None:
    """Exit when the parent is gone (a killed parent closes no queue that its workers wait on), and leave Ctrl-C to the
    parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
