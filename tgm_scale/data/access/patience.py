"""Waiting for a storage that does not answer for now: a server's bad minute is not worth a job of 512 GPUs.

Which processes wait for which shard now, here and in the data workers, a run's heartbeat reports. A worker sends its
waits through the pipe of its samples: `listen` there, `of_worker` in the training process."""

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

PATIENCE_SECONDS = 300.0  # where data.patience says nothing else
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds between attempts; each pause is twice the last
SAY_AFTER = 10.0  # seconds of waiting
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_OUR_OWN = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, MemoryError)
_LOOK = 0.2  # seconds from one look to the next, while waiting, whether to stop

T = TypeVar("T")
_asked_to_stop: Callable[[], bool] = lambda: False  # noqa: E731
_of_thread = threading.local()  # `ended`: the event that ends this thread's waits
_answered: set[str] = set()  # storages, by protocol and host, that were read by this process


class Stopped(OSError):
    """The work ended because this process, or one that it works with, was asked to stop."""


class StoppedWaiting(Stopped):
    """The wait for a storage ended because whoever waits was asked to stop."""


class RetryLater(OSError):
    """The server's answer, and in how many seconds it wants to be asked again."""

    def __init__(self, words: str, retry_after: float = 0.0) -> None:
        super().__init__(words)
        self.retry_after = retry_after


def retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that a Retry-After header asks for, by number or by date; 0 without one."""
    value = headers.get("Retry-After", "").strip()
    try:
        if value.isdigit():
            return float(value)
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def retrying(action: Callable[[], T], what: str, seconds: float | None = None) -> T:
    """`action()`, again after a passing error for up to `seconds` of waiting (default: PATIENCE_SECONDS).

    Raises OSError naming `what` after the last attempt; what is missing, forbidden or no error of the storage is not
    tried again: see `refusals`. Raises StoppedWaiting where it is to stop (`waits_end_when`, `ends_waits`).
    A wait of more than SAY_AFTER is reported, with the process that waits; `all_waits` has the current ones."""
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
    """Within, every wait of this process for a storage ends with StoppedWaiting as soon as `asked()`, and work that
    calls `stop_where_asked` with Stopped."""
    global _asked_to_stop
    before, _asked_to_stop = _asked_to_stop, asked
    try:
        yield
    finally:
        _asked_to_stop = before


def ends_waits(event: threading.Event) -> None:
    """This thread's waits end with StoppedWaiting once the event is set."""
    _of_thread.ended = event


def stop_where_asked(work: str) -> None:
    """Raises Stopped where this process was asked to stop. work: what ends by it, in words."""
    if _asked_to_stop():
        raise Stopped(f"stopped during {work}")


def stop_where_waited() -> None:
    """Raises StoppedWaiting where this process was asked to stop while it, or a data worker of it, waits."""
    if _asked_to_stop() and (found := all_waits()):
        raise StoppedWaiting(f"stopped while it waited for {found[0].what}: {found[0].why}")


def pause_for(seconds: float, what: str) -> None:
    """Raises StoppedWaiting."""
    end, ended = time.monotonic() + seconds, getattr(_of_thread, "ended", None)
    while (left := end - time.monotonic()) > 0:
        if _asked_to_stop() or (ended is not None and ended.is_set()):
            raise StoppedWaiting(f"stopped while it waited for {what}")
        time.sleep(min(left, _LOOK))


def _is_open(what: str) -> bool:
    """Whether the storage was read before: a data worker starts once its parent has opened the data."""
    return multiprocessing.parent_process() is not None or _server(what) in _answered


def _server(what: str) -> str:
    return "/".join(what.split("/")[:3])


def _own_share() -> float:
    """0.75 to 1.25, by process: thousands of readers do not come back at the same moment."""
    return 0.75 + 0.5 * (os.getpid() * 0.6180339887 % 1.0)


def _report(words: str) -> None:
    sys.stderr.write(escaped(f"{process_name()} {words}\n"))


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
