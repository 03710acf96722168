"""What was read of URLs, kept on a node's own disk within a bound that all its processes share."""

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

_DIGEST = 16  # bytes before the content: a disk that fills up or fails gives a miss, not a wrong clip
_LOOKS = 64  # the folder is measured again when all have added this part of the limit
_NOTES = 4096  # and each notes what it has added by this part
_ADDED, _THINNING = ".added", ".thinning"  # a byte for each such part; locked by who measures


class DiskCache:
    """`get` and `put` by a key of strings and numbers. Where the folder is full the entries that were not used for the
    longest time go.

    All processes of a node count together what they add, and one of them measures the folder, when that is 1/64 of the
    limit: by so much it may be exceeded, and by 1/4096 for each process and what they add meanwhile."""

    def __init__(self, folder: str | os.PathLike, limit: int):
        """Raises ValueError where the folder cannot be made."""
        self._folder, self._limit = Path(folder), limit
        self._added = 0  # of this process, not noted yet
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
        if parts or first:  # a process that ends before it has added a part counts as one that did
            with suppress(OSError):
                self._note(parts + first)

    def drop(self, *key: str | int) -> None:
        """Forget what is kept under a key."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    @property
    def _part(self) -> int:
        return max(1, self._limit // _NOTES)

    def _note(self, parts: int) -> None:
        """Count what was added, of all processes; where it is enough, measure. A folder that nobody has counted in may
        be overfull."""
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
        """Whether no other process measures the folder; the others go on meanwhile. Where files cannot be locked, each
        measures it."""
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
                    with suppress(OSError):  # a process may drop one
                        stat = entry.stat()
                        paths.append(entry.path)
                        times.append(stat.st_mtime)
                        sizes.append(stat.st_size)
        over = sum(sizes) - self._limit
        for at in sorted(range(len(paths)), key=times.__getitem__):
            if over <= 0:
                return
            with suppress(OSError):  # it may be another user's
                Path(paths[at]).unlink(missing_ok=True)
                over -= sizes[at]

    def _path(self, key: tuple[str | int, ...]) -> Path:
        name = hashlib.blake2b("\n".join(map(str, key)).encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name[2:]

    def __reduce__(self) -> tuple:
        return DiskCache, (self._folder, self._limit)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
