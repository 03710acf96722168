"""Files: atomic writes, permissions for colleagues, checks of outputs, and messages for full disks."""

from __future__ import annotations

import difflib
import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

_STREAMS = re.compile(r"/dev/(stdout|stderr|null|tty|fd/\d+)")  # also where they lead to a file
_NAME, _PATH, _SHOWN = 255, 4095, 80  # Linux's limits on the bytes of a name and of a path; letters to show
_WAYS = (FileExistsError, FileNotFoundError, NotADirectoryError)  # errors that something further up the path may cause
_COMPARED, _NEAR = 10_000, 3  # names in a folder to compare with a missing one; close ones to try
FULL = (errno.ENOSPC, errno.EDQUOT)  # a disk, a quota
BEGINNINGS = {"HTML page": (b"<!doctype html",), "JSON file": (b"{", b"["), "picture": (b"\x89png", b"\xff\xd8")}


def too_long(path: Path) -> str:
    """Return a message where a path, or a name in it, is longer than file systems allow; else ""."""
    for place in (*reversed(path.parents), path):
        if (size := len(os.fsencode(place.name))) > _NAME:
            return f"{str(place)[:_SHOWN]}...: a name of {size} bytes, wanted {_NAME} at most: choose a shorter one"
    if (size := len(os.fsencode(path))) > _PATH:
        return f"{str(path)[:_SHOWN]}...: a path of {size} bytes, wanted {_PATH} at most: choose a shorter one"
    return ""


def in_the_way(path: Path) -> str:
    """Return a message on what prevents a folder at a path, there or above: a name that is too long, a link to
    nothing, or a file; else ""."""
    if said := too_long(path):
        return said
    for place in (path, *path.parents):
        if os.path.islink(place) and not os.path.exists(place):
            return f"{place}: a link to nothing: {os.readlink(place)} is not there: make it, or name another"
        if os.path.lexists(place) and not os.path.isdir(place):
            return f"{place}: found a file where a folder is wanted: name another"
    return ""


def like(path: str | Path) -> str:
    """Return a hint to an existing path with nearly the name of a missing one, to follow `no such file`; "" without
    one."""
    path = Path(path)
    place = next((above for above in path.parents if os.path.isdir(above)), None)
    if place is None:
        return ""
    first, *rest = path.relative_to(place).parts
    with suppress(OSError), os.scandir(place) as entries:
        names = sorted(entry.name for entry in islice(entries, _COMPARED))
        for name in difflib.get_close_matches(first, names, n=_NEAR):
            if os.path.exists(found := place.joinpath(name, *rest)):
                return f"; there is {found}"
    return ""


def trouble_at(failure: BaseException) -> str:
    """Return `in_the_way` for the path in an error; "" where it has none, or is of another kind."""
    long = isinstance(failure, OSError) and failure.errno == errno.ENAMETOOLONG
    path = failure.filename if isinstance(failure, OSError) and (long or isinstance(failure, _WAYS)) else None
    return in_the_way(Path(os.fsdecode(path))) if isinstance(path, (str, bytes, os.PathLike)) else ""


def check_folder(option: str, folder: Path) -> None:
    """Check an output's folder before the work, leaving nothing behind. Raises ValueError where it cannot be created
    or written, OSError where a disk is full."""
    if said := in_the_way(folder):
        raise ValueError(f"{option} {said}")
    nearest = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.isdir(place))
    try:
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".probe-"):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise
        what = "written" if nearest == folder.absolute() else "made"
        raise ValueError(f"{option} {folder}: cannot be {what} ({error.strerror}): name another") from None


def check_output(option: str, file: Path, kind: str) -> None:
    """Check an output file before the work: it may be overwritten if it is empty or of that kind (a key of
    BEGINNINGS). Raises ValueError where it is something else, or cannot exist. /dev/stdout and the like are
    allowed."""
    if said := too_long(file):
        raise ValueError(f"{option} {said}")
    if file.is_dir():
        raise ValueError(f"{option} {file}: a folder; wanted a file's name")
    if os.path.islink(file) and not file.exists():
        raise ValueError(f"{option} {in_the_way(file)}")
    if not file.absolute().parent.is_dir():
        if said := in_the_way(file.parent):
            raise ValueError(f"{option} {file}: {said}")
        raise ValueError(f"{option} {file}: no folder {file.parent}: its folder is not there; make it first")
    if not file.exists():
        check_folder(option, file.parent)
        return
    if kind == "JSON file" and _STREAMS.fullmatch(str(file)):
        return
    if not file.is_file():
        raise ValueError(f"{option} {file}: no plain file: name another")
    with file.open("rb") as stream:
        begins = stream.read(64).lstrip().lower()
    if begins and not begins.startswith(BEGINNINGS[kind]):
        raise ValueError(f"{option} {file}: there is a file that is no {kind}: name another")


def readable_as_its_folder(file: Path, folder: Path) -> None:
    """Give a file the permissions of its folder and of new files in it (the umask, a default ACL): safetensors' writer
    leaves it to the owner alone, so that colleagues could not load a checkpoint."""
    probe = file.with_name(f".{file.name}.{os.getpid()}.mode")  # reading the umask means setting it, for all threads
    descriptor = os.open(probe, os.O_CREAT | os.O_WRONLY, 0o666)
    try:
        usual = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
        probe.unlink(missing_ok=True)
    file.chmod(usual & folder.stat().st_mode & 0o666)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add this file's name to an OSError without one: the system reports a full disk without it."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` at the end, so that a reader or the next start sees the old file or
    the new one, never a part.

    durable: also if the host loses power."""
    temporary = path.with_name(path.name + ".writing")
    try:
        with naming(path):
            yield temporary
            if durable:
                sync(temporary)
    except OSError:
        with suppress(OSError):  # half a file on a full disk
            temporary.unlink()
        raise
    temporary.rename(path)


def replace_file(path: Path, text: str, durable: bool = True) -> None:
    """Write a text file by `replacing`."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Yield a new folder next to `folder`, to be filled, which is renamed at the end; if another start that makes the
    same was first, its folder stays. Leftovers of a killed start of this host are removed."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{folder.name}.making-{platform.node()}-"
    for left in folder.parent.iterdir():
        number = left.name.removeprefix(mark)
        if number == left.name or not number.isdecimal():
            continue
        if int(number) == os.getpid() or not Path("/proc", number).exists():  # in containers pids are often equal
            shutil.rmtree(left, ignore_errors=True)
    unfinished = folder.with_name(f"{mark}{os.getpid()}")
    try:
        yield unfinished
        try:
            unfinished.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def sync(path: Path) -> None:
    """Call fsync on a file, or on the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: OSError, folder: Path, wanted: int | None = None) -> str:
    """Return a message on an error in writing to a folder; where space lacks, with the free and the wanted bytes."""
    if error.errno not in FULL:
        return str(error)
    try:
        free = f"{shutil.disk_usage(folder).free:,}"
    except OSError:
        free = "unknown"
    need = "" if wanted is None else f", {wanted:,} bytes wanted"
    quota = " (the quota is used up)" if error.errno == errno.EDQUOT else ""
    return f"no space left in {folder}{quota}: {free} bytes free{need}"
