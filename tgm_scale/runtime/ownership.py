"""Ownership of a run folder: a second start is refused while the owner lives, and takes over once it is dead.

    RUN/owner/000003    of the third start: a line of JSON that identifies it, then a counter raised every 5 seconds

The newest number owns. A start takes the next number by creating its file, which only one can; then it checks again.
This relies on no file-system lock and on no other host's clock: an owner on another host is alive if its counter
moves."""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tgm_scale.runtime.command import USER_MISTAKE
from tgm_scale.runtime.outside.json_text import json_of

BEAT = 5.0  # seconds from one count to the next
WATCHED = 15.0  # seconds without a count after which an owner on another host is dead: three beats
_LOOK = 0.5
_ENDED = "ended"
_DIGITS = 6


@dataclass(frozen=True)
class Owner:
    """Start of a run, identified by its main process."""

    host: str
    pid: int
    process: str  # distinguishes it from a later one of the same pid: boot, namespace, user, start time
    job: str | None = None
    restart: int = 0

    def __str__(self) -> str:
        return f"{self.host}, pid {self.pid}" + (f", SLURM job {self.job}" if self.job else "")


def this_start(env: Mapping[str, str] = os.environ) -> Owner:
    """Return the start that this process belongs to."""
    pid = os.getpid()
    restart = env.get("SLURM_RESTART_COUNT", "0")
    return Owner(
        platform.node(),
        pid,
        _identity(pid) or "unknown",
        env.get("SLURM_JOB_ID"),
        int(restart) if restart.isdecimal() else 0,
    )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Own a run folder within this context, as the main process of a start. Raises ValueError where another start owns
    it, OSError where it cannot be written.

    A process whose folder was taken over, because its counter had stopped for a while, ends at once: otherwise two
    would write."""
    number = take(folder, this_start())
    stop = threading.Event()
    thread = threading.Thread(target=_count, args=(folder, number, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with suppress(OSError):  # a full or lost disk: the next start only watches for a while
            _write_count(_file(folder, number), _ENDED)


def take(folder: Path, me: Owner) -> int:
    """Return the number under which this start owns the folder. Raises ValueError that names a living owner."""
    _place(folder).mkdir(parents=True, exist_ok=True)
    while True:
        newest = _newest(folder)
        if newest:
            _refuse_if_alive(folder, newest, me)
        number = newest + 1
        try:
            with _file(folder, number).open("x", encoding="utf-8") as stream:
                stream.write(f"{json.dumps(asdict(me))}\n{0:>12}\n")
                stream.flush()
                os.fsync(stream.fileno())
        except FileExistsError:
            continue  # another start came first: check who it is
        if _newest(folder) == number:
            for old in _numbers(folder)[:-2]:
                _file(folder, old).unlink(missing_ok=True)
            return number
        _file(folder, number).unlink(missing_ok=True)


@dataclass(frozen=True)
class Liveness:
    """State of a folder's newest owner: seconds since its last count, and whether it ended, or is known to be gone."""

    age: float
    ended: bool
    gone: bool
    owner: Owner | None

    @property
    def living(self) -> bool:
        return not self.ended and not self.gone and self.age <= WATCHED


def liveness(folder: Path) -> Liveness | None:
    """Return the liveness of the newest start, without waiting for its next count; None where none has begun."""
    try:
        newest = _newest(folder)
        age = max(0.0, time.time() - _file(folder, newest).stat().st_mtime)
    except OSError:
        return None
    text, owner = _read(folder, newest)
    here = owner is not None and _on_this_host(owner, this_start())
    gone = here and owner is not None and _identity(owner.pid) != owner.process
    return Liveness(age, text.strip().endswith(_ENDED), gone, owner)


def _refuse_if_alive(folder: Path, number: int, me: Owner) -> None:
    """Return where the owner with this number is dead or has ended; raise ValueError where it lives."""
    began = time.monotonic()
    first, owner = _read(folder, number)
    while True:
        now, owner = _read(folder, number)
        if now.strip().endswith(_ENDED) or _newest(folder) != number:
            return
        if owner is not None and _on_this_host(owner, me):
            if _identity(owner.pid) != owner.process:
                return
            age = max(0.0, time.time() - _file(folder, number).stat().st_mtime)
            raise ValueError(_in_use(folder, owner, age))
        if owner is not None and owner.job is not None and owner.job == me.job and me.restart > owner.restart:
            return  # SLURM requeued the job, so that its earlier processes are gone
        if now != first:
            raise ValueError(_in_use(folder, owner, 0.0))
        if time.monotonic() - began > WATCHED:
            return
        time.sleep(_LOOK)


def _in_use(folder: Path, owner: Owner | None, age: float) -> str:
    who = f"{owner or 'just begun'}; last heartbeat {age:.0f} s ago"
    return f"run.dir={folder}: in use by another start ({who}): give this one another run.dir, or end that one first"


def _count(folder: Path, number: int, stop: threading.Event) -> None:
    """Raise the count until the owner ends; end the process if the folder gets another owner."""
    counted, failed = 0, False
    while not stop.wait(BEAT):
        counted += 1
        try:
            _write_count(_file(folder, number), str(counted))
        except Exception as error:  # a dead thread would leave the folder to the next start, and two would write
            if not failed:
                sys.stderr.write(f"run.dir={folder}: the owner's heartbeat cannot be written: {error}\n")
            failed = True
        newest = number
        with suppress(Exception):
            newest = _newest(folder)
        if newest > number:
            _, other = _read(folder, newest)
            sys.stderr.write(
                f"run.dir={folder}: another start ({other}) took it over while this process did not answer; this one "
                "ends without a checkpoint\n"
            )
            sys.stderr.flush()
            os._exit(USER_MISTAKE)


def _write_count(file: Path, count: str) -> None:
    """Write the count in place, 12 bytes: no new file for a server's metadata, no space needed on a full disk, and the
    first line is never half written."""
    with file.open("r+b") as stream:
        stream.seek(len(stream.readline()))
        stream.write(f"{count:>12}".encode())


def _read(folder: Path, number: int) -> tuple[str, Owner | None]:
    """Return the text of an owner's file, and the owner; None where it is not written yet, or gone."""
    try:
        text = _file(folder, number).read_text(encoding="utf-8")
        return text, Owner(**json_of(text.partition("\n")[0]))
    except (OSError, ValueError, TypeError):
        return "", None


def _place(folder: Path) -> Path:
    return folder / "owner"


def _file(folder: Path, number: int) -> Path:
    return _place(folder) / f"{number:0{_DIGITS}d}"


def _numbers(folder: Path) -> list[int]:
    return sorted(int(name) for name in os.listdir(_place(folder)) if name.isdecimal() and len(name) == _DIGITS)


def _newest(folder: Path) -> int:
    return max(_numbers(folder), default=0)


def _on_this_host(owner: Owner, me: Owner) -> bool:
    """Return whether a pid means the same on both sides: one boot of one kernel, one pid namespace, one user (a system
    may hide the processes of others)."""
    return owner.process != "unknown" and owner.process.split()[:3] == me.process.split()[:3]


def _identity(pid: int) -> str | None:
    """Return boot, pid namespace, user and start time of a process; None where it does not exist, or without /proc."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may contain anything
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot} {namespace} {os.getuid()} {fields[19]}"  # a zombie writes no more
