"""Lines that come in any order, to be read again group by group: in a file without a name, not in memory."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator

from tgm_scale.data.building.key_files import append_to, scratch_file

HELD = 1 << 25  # bytes that wait in memory, of all groups together


class GroupedLines:
    """Lines without line ends, in the order in which they were added to their group."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        """folder: where the file lies; None: TMPDIR."""
        self._file = scratch_file(folder)
        self._end = self._size = 0  # of the file; of what waits
        self._waiting: defaultdict[int | str, bytearray] = defaultdict(bytearray)
        self._pieces: defaultdict[int | str, list[tuple[int, int]]] = defaultdict(
            list
        )  # where they begin, their sizes

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
