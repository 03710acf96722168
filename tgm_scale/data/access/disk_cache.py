"""Disk cache of data read from URLs, on a node's local disk, with a size limit shared by all its processes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tgm_scale.data.access import storage

_DIGEST = 16  # bytes before the content: if the disk fills up or fails, the result is a miss, not a wrong clip
_LOOKS = 64  # the folder is measured again once all processes together have added 1/64 of the limit
_NOTES = 4096  # and each process records what it has added in steps of 1/4096 of it
_ADDED, _THINNING = ".added", ".thinning"  # one byte for each such step; locked by the process that measures


class DiskCache:
    """Cache with `get` and `put`, keyed by strings and numbers. When the folder is full, the least recently used
    entries are removed.

    All processes of a node jointly count what they add; when that reaches 1/64 of the limit, one of them measures
    the folder. The limit may thus be exceeded by 1/64, plus 1/4096 for each process, plus what they add meanwhile."""

    def __init__(self, folder: str | os.PathLike, limit: int):
        """Create the folder. Raises ValueError where it cannot be created."""
        self._folder, self._limit = Path(folder), limit
        self._added = 0  # by this process, not recorded yet
        self._first = True
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"data.cache.dir={folder} cannot be made ({error.strerror}): name another") from error

    def get(self, *key: str | int) -> bytes | None:
        path = self._path(key)
        try:
            whole = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        digest, data = whole[:_DIGEST], whole[_DIGEST:]
        return data if digest == _digest(data) else None

    def put(self, data: bytes, *key: str | int) -> None:
        """Store `data`. If the disk is full or fails, the entry is lost and nothing else."""
        path = self._path(key)
        with suppress(OSError):
            storage.write_atomically(path, _digest(data) + data, durable=False)
        with self._lock:
            self._added += len(data)
            parts, self._added = divmod(self._added, self._part)
            first, self._first = self._first, False
        if parts or first:  # a process that ends before it has added a whole step counts as one that did
            with suppress(OSError):
                self._note(parts + first)

    def drop(self, *key: str | int) -> None:
        """Remove the entry of a key."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    @property
    def _part(self) -> int:
        return max(1, self._limit // _NOTES)

    def _note(self, parts: int) -> None:
        """Record `parts` steps added by this process; once all processes have added enough, measure the folder. A
        folder without a record yet is measured at once, since it may be overfull."""
        notes = self._folder / _ADDED
        counted = notes.exists()
        with notes.open("ab") as file:
            file.write(bytes(parts))
            enough = not counted or file.tell() * self._part * _LOOKS >= self._limit
        if enough:
            with self._alone() as alone:
                if alone:
                    os.truncate(notes, 0)
                    self._thin_out()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Yield whether no other process is measuring the folder; the others continue meanwhile. Where files cannot
        be locked, every process measures it."""
        with (self._folder / _THINNING).open("ab") as file:
            alone = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            except OSError:
                pass
            yield alone

    def _thin_out(self) -> None:
        paths, times, sizes = list[str](), array("d"), array("q")  # 500 GB are a million entries
        for place in self._folder.glob("??"):
            with suppress(OSError), os.scandir(place) as found:
                for entry in found:
                    with suppress(OSError):  # another process may have removed it
                        stat = entry.stat()
                        paths.append(entry.path)
                        times.append(stat.st_mtime)
                        sizes.append(stat.st_size)
        over = sum(sizes) - self._limit
        for at in sorted(range(len(paths)), key=times.__getitem__):
            if over <= 0:
                return
            with suppress(OSError):  # it may belong to another user
                Path(paths[at]).unlink(missing_ok=True)
                over -= sizes[at]

    def _path(self, key: tuple[str | int, ...]) -> Path:
        name = hashlib.blake2b("\n".join(map(str, key)).encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name[2:]

    def __reduce__(self) -> tuple:
        return DiskCache, (self._folder, self._limit)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
