"""Retries for storage that is temporarily unavailable: a server's bad minute must not end a job of 512 GPUs.

The run's heartbeat reports which processes currently wait for which shard, here and in the data workers. A worker
sends its waits through the pipe of its samples: `listen` in the worker, `of_worker` in the training process."""

from __future__ import annotations

import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

from tgm_scale.runtime.outside.refusals import PermanentError, Refused, refusal, remedy
from tgm_scale.runtime.terminal import escaped, without_secrets

PATIENCE_SECONDS = 300.0  # default of data.patience
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; each pause is twice the previous one
SAY_AFTER = 10.0  # seconds of waiting before it is reported
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OUR_OWN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError)
_LOOK = 0.2  # seconds between checks, while waiting, of whether to stop

T = TypeVar("T")
_asked_to_stop: Callable[[], bool] = lambda: False  # noqa: E731
_of_thread = threading.local()  # `ended`: the event that ends this thread's waits
_answered: set[str] = set()  # storages, by protocol and host, that this process has read from


class Stopped(OSError):
    """Error for work that ended because this process, or one it cooperates with, was asked to stop."""


class StoppedWaiting(Stopped):
    """Error for a wait for storage that ended because the waiting process was asked to stop."""


class RetryLater(OSError):
    """Error for a server's response that allows a retry, with the delay in seconds that it asks for."""

    def __init__(self, words: str, retry_after: float = 0.0) -> None:
        super().__init__(words)
        self.retry_after = retry_after


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a Retry-After header asks for, as a number or a date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        if value.isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def retrying(action: Callable[[], T], what: str, seconds: float | None = None) -> T:
    """Return `action()`, retried after transient errors for up to `seconds` of waiting (default: PATIENCE_SECONDS).

    Raises OSError naming `what` after the last attempt; missing or forbidden files and errors that are not the
    storage's are not retried: see `refusals`. Raises StoppedWaiting where the wait is to end (`waits_end_when`,
    `ends_waits`).
    Waits of more than SAY_AFTER are reported, with the waiting process; `all_waits` returns the current ones."""
    try:
        return _retried(action, without_secrets(what), PATIENCE_SECONDS if seconds is None else seconds)
    finally:
        ended()


def _retried(action: Callable[[], T], what: str, limit: float) -> T:
    began, waited, pause, attempts, reported = time.monotonic(), 0.0, FIRST_PAUSE, 0, 0.0
    while True:
        attempts += 1
        try:
            result = action()
        except _LASTING as error:
            if "://" not in what:
                raise
            said = without_secrets(str(error))
            if "://" not in said:
                said = f"{what}: {said}"
            if isinstance(error, PermissionError) and (way_out := remedy(what)) not in said:
                said += f": {way_out}"
            raise type(error)(said) from error
        except (*_OUR_OWN, PermanentError, Refused, StoppedWaiting, RecursionError, NotImplementedError):
            raise
        except Exception as error:  # remote file systems raise classes of their own (aiohttp, botocore)
            why = without_secrets(f"{type(error).__name__}: {error}")
            if refused := refusal(error, what, _is_open(what)):
                raise refused from error
            passed = max(waited, time.monotonic() - began)
            wait = max(pause * _own_share(), getattr(error, "retry_after", 0.0))
            if passed + wait > limit:
                asked = f", and {wait:.0f} s more were asked for" if wait > 2 * pause else ""
                spent = f"{attempts} attempt{'s' * (attempts > 1)} in {passed:.0f} s{asked}; data.patience"
                raise OSError(f"{what}: {why} ({spent})") from error
            if passed + wait > max(SAY_AFTER, 2 * reported):
                reported = passed + wait
                _report(f"waits for {what}, {passed:.0f} s by now, up to {limit:.0f}: {why}")
            started(what, escaped(why, keep=""), time.time() - passed)
            pause_for(wait, what)
            waited, pause = waited + wait, min(2 * pause, LONGEST_PAUSE)
        else:
            if reported:
                _report(f"has {what} after {time.monotonic() - began:.0f} s")
            _answered.add(_server(what))
            return result


@contextmanager
def waits_end_when(asked: Callable[[], bool]) -> Iterator[None]:
    """While active, end every wait of this process for storage with StoppedWaiting as soon as `asked()` is true,
    and work that calls `stop_where_asked` with Stopped."""
    global _asked_to_stop
    before, _asked_to_stop = _asked_to_stop, asked
    try:
        yield
    finally:
        _asked_to_stop = before


def ends_waits(event: threading.Event) -> None:
    """Make this thread's waits end with StoppedWaiting once the event is set."""
    _of_thread.ended = event


def stop_where_asked(work: str) -> None:
    """Raise Stopped if this process was asked to stop. work: a description of what this interrupts."""
    if _asked_to_stop():
        raise Stopped(f"stopped during {work}")


def stop_where_waited() -> None:
    """Raise StoppedWaiting if this process was asked to stop while it, or one of its data workers, waits for
    storage."""
    if _asked_to_stop() and (found := all_waits()):
        raise StoppedWaiting(f"stopped while it waited for {found[0].what}: {found[0].why}")


def pause_for(seconds: float, what: str) -> None:
    """Sleep, checking for a request to stop. Raises StoppedWaiting."""
    end, ended = time.monotonic() + seconds, getattr(_of_thread, "ended", None)
    while (left := end - time.monotonic()) > 0:
        if _asked_to_stop() or (ended is not None and ended.is_set()):
            raise StoppedWaiting(f"stopped while it waited for {what}")
        time.sleep(min(left, _LOOK))


def _is_open(what: str) -> bool:
    """Return whether the storage was read before: a data worker starts only after its parent has opened the data."""
    return multiprocessing.parent_process() is not None or _server(what) in _answered


def _server(what: str) -> str:
    return "/".join(what.split("/")[:3])


def _own_share() -> float:
    """Return 0.75 to 1.25 by process, so that thousands of readers do not retry at the same moment."""
    return 0.75 + 0.5 * (os.getpid() * 0.6180339887 % 1.0)


def _report(words: str) -> None:
    sys.stderr.write(escaped(f"{process_name()} {words}\n"))


class Wait(NamedTuple):
    """Wait of one thread, without secrets. since: its start, by time.time()."""

    who: str
    what: str
    why: str
    since: float


_own: dict[int, Wait] = {}  # by thread
_of_workers: dict[int, list[Wait]] = {}  # by process
_listener: Callable[[list[Wait]], None] | None = None


def process_name() -> str:
    """Return a description of this process: rank, process id and host."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID")
    return f"{f'rank {rank}, ' if rank else ''}process {os.getpid()} on {platform.node()}"


def started(what: str, why: str, since: float) -> None:
    """Record that this thread waits."""
    _own[threading.get_ident()] = Wait(process_name(), what, why, since)
    _hand_over()


def ended() -> None:
    """Record that this thread no longer waits."""
    if _own.pop(threading.get_ident(), None) is not None:
        _hand_over()


def _hand_over() -> None:
    if _listener is not None:
        _listener(list(_own.values()))


def listen(listener: Callable[[list[Wait]], None]) -> None:
    """Call `listener` with this process's waits at each change, from the waiting thread."""
    global _listener
    _listener = listener


def of_worker(process: int, waits: list[Wait]) -> None:
    """Set the waits that a worker has sent; an empty list once it has ended."""
    _of_workers[process] = waits


def all_waits() -> list[Wait]:
    """Return the waits of this process and its workers, the longest first."""
    found = [*list(_own.values()), *(wait for waits in list(_of_workers.values()) for wait in waits)]
    return sorted(found, key=lambda wait: wait.since)
