"""Byte ranges of remote files kept in a folder of bounded size, which the processes of a node share."""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path

from tgm_scale.data.access import storage

_DIGEST = 16  # bytes before the content: a disk that fills up or fails gives a miss, not a wrong clip
_LOOKS = 64  # the folder is measured again when a process has added this part of the limit


class DiskCache:
    """`get` and `put` by a key of strings and numbers. Where the folder is full the entries that were not used for the
    longest time go. Each process measures on its own, so each may overshoot by 1/64 of the limit."""

    def __init__(self, folder: str | os.PathLike, limit: int):
        """Raises ValueError where the folder cannot be made."""
        self._folder, self._limit = Path(folder), limit
        self._added = limit  # an old, overfull folder is thinned out at the first entry
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
            full = self._added * _LOOKS >= self._limit
            if full:
                self._added = 0
        if full:
            self._thin_out()

    def drop(self, *key: str | int) -> None:
        """Forget what is kept under a key."""
        with suppress(OSError):
            self._path(key).unlink(missing_ok=True)

    def _thin_out(self) -> None:
        entries = []
        for place in self._folder.glob("??/*"):
            with suppress(OSError):  # another process may thin out, too
                stat = place.stat()
                entries.append((stat.st_mtime, stat.st_size, place))
        over = sum(size for _, size, _ in entries) - self._limit
        for _, size, place in sorted(entries):
            if over <= 0:
                return
            place.unlink(missing_ok=True)
            over -= size

    def _path(self, key: tuple[str | int, ...]) -> Path:
        name = hashlib.blake2b("\n".join(map(str, key)).encode(), digest_size=16).hexdigest()
        return self._folder / name[:2] / name[2:]

    def __reduce__(self) -> tuple:
        return DiskCache, (self._folder, self._limit)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
