"""Which processes wait for which shard now, here and in the data workers; a run's heartbeat reports it.

A worker sends its waits through the pipe of its samples: `listen` there, `of_worker` in the training process."""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from typing import NamedTuple


class Wait(NamedTuple):
    """Of one thread; without secrets. since: when it began to wait, by time.time()."""

    who: str
    what: str
    why: str
    since: float


_own: dict[int, Wait] = {}  # by thread
_of_workers: dict[int, list[Wait]] = {}  # by process
_listener: Callable[[list[Wait]], None] | None = None


def process_name() -> str:
    """This process, in words."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    return f"{f'rank {rank}, ' if rank else ''}process {os.getpid()} on {platform.node()}"


def started(what: str, why: str, since: float) -> None:
    """This thread waits."""
    _own[threading.get_ident()] = Wait(process_name(), what, why, since)
    _hand_over()


def ended() -> None:
    """This thread has stopped waiting, if it did wait."""
    if _own.pop(threading.get_ident(), None) is not None:
        _hand_over()


def _hand_over() -> None:
    if _listener is not None:
        _listener(list(_own.values()))


def listen(listener: Callable[[list[Wait]], None]) -> None:
    """Call `listener` at each change of this process's waits, from the waiting thread."""
    global _listener
    _listener = listener


def of_worker(process: int, waits: list[Wait]) -> None:
    """Set what a worker has sent; an empty list once it has ended."""
    _of_workers[process] = waits


def all_waits() -> list[Wait]:
    """Those of this process and its workers, the longest first."""
    found = [*list(_own.values()), *(wait for waits in list(_of_workers.values()) for wait in waits)]
    return sorted(found, key=lambda wait: wait.since)
