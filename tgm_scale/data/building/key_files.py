"""Keys and lines of millions of rows in unnamed files, below TMPDIR or in a folder: memory holds one part at a time.

Keys have 63 bits and are hashes (`seeding.key`), so equal ranges of values hold about equally many of them."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np

RUN = 1 << 18  # keys that are held and sorted together, 2 MB
_PARTS = 256  # ranges of values that are merged one by one: 40,000 keys each for 10 million
_FENCE = 512  # keys between two that stay in memory: a look-up in the sorted file reads 4 kB
_BYTES = 8


def scratch_file(folder: str | os.PathLike[str] | None = None) -> IO[bytes]:
    """Open an unnamed file, in a folder or in TMPDIR; it disappears when it is closed or the process ends."""
    return tempfile.TemporaryFile(dir=None if folder is None else os.fspath(folder))


def append_to(file: IO[bytes], data: bytes | bytearray | array[int]) -> None:
    """Append all of `data` and flush it, so that `os.pread` sees it. Raises OSError where the disk is full."""
    file.write(data)
    file.flush()


class KeyFile:
    """Sequence of keys, or any other numbers below 2**64, in the order of insertion."""

    def __init__(self) -> None:
        self._file, self._held = scratch_file(), array("Q")

    def append(self, key: int) -> None:
        self._held.append(key)
        if len(self._held) == RUN:
            append_to(self._file, self._held)
            self._held = array("Q")

    def runs(self) -> Iterator[np.ndarray]:
        """Yield the keys, uint64, a run at a time."""
        written = os.fstat(self._file.fileno()).st_size // _BYTES
        for start in range(0, written, RUN):
            yield _read(self._file, start, start + RUN)
        if self._held:
            yield np.array(self._held, np.uint64)


class SortedKeys:
    """Sorted set of keys on disk, for membership tests."""

    def __init__(self, keys: Iterable[np.ndarray]) -> None:
        """Write the keys to disk. keys: sorted, each once, a part at a time."""
        self._file, self.count = scratch_file(), 0
        fences = []
        for part in keys:
            append_to(self._file, part.tobytes())
            fences.append(part[-self.count % _FENCE :: _FENCE].copy())  # a view would keep the whole part in memory
            self.count += len(part)
        self._fences = np.concatenate(fences) if fences else np.empty(0, np.uint64)

    def __contains__(self, key: int) -> bool:
        block = int(np.searchsorted(self._fences, np.uint64(key), side="right")) - 1
        return block >= 0 and key in _read(self._file, block * _FENCE, (block + 1) * _FENCE)


def distinct(runs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield all keys of these runs sorted, each once, a part at a time; the runs are sorted on disk."""
    bounds = np.arange(1, _PARTS, dtype=np.uint64) << np.uint64(55)
    cuts: list[np.ndarray] = []  # for each run, the boundaries of its parts in the file
    written = 0
    with scratch_file() as file:
        for run in runs:
            keys = np.sort(run)
            append_to(file, keys.tobytes())
            cuts.append(written + np.concatenate(([0], np.searchsorted(keys, bounds), [len(keys)])))
            written += len(keys)
        for part in range(_PARTS if written else 0):
            pieces = [_read(file, int(cut[part]), int(cut[part + 1])) for cut in cuts]
            yield np.unique(np.concatenate(pieces))


def _read(file: IO[bytes], start: int, end: int) -> np.ndarray:
    return np.frombuffer(os.pread(file.fileno(), (end - start) * _BYTES, start * _BYTES), np.uint64)


HELD = 1 << 25  # bytes buffered in memory, of all groups together


class GroupedLines:
    """Lines without line ends, in the order of insertion into their group."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """Open the file. folder: its location; None: TMPDIR."""
        self._file = scratch_file(folder)
        self._end = self._size = 0  # the file's size; the buffered bytes
        self._waiting: defaultdict[int | str, bytearray] = defaultdict(bytearray)
        self._pieces: defaultdict[int | str, list[tuple[int, int]]] = defaultdict(list)  # start and size of each piece

    def add(self, group: int | str, line: bytes) -> None:
        self._waiting[group] += line + b"\n"
        self._size += len(line) + 1
        if self._size > HELD:
            self._write()

    def of_group(self, group: int | str) -> Iterator[bytes]:
        self._write()
        for start, size in self._pieces[group]:
            yield from os.pread(self._file.fileno(), size, start).split(b"\n")[:-1]

    def _write(self) -> None:
        for group, lines in self._waiting.items():
            append_to(self._file, lines)
            self._pieces[group].append((self._end, len(lines)))
            self._end += len(lines)
        self._waiting.clear()
        self._size = 0
