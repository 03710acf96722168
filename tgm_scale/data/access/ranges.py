"""Byte-range reads from local files and URLs, checked against the tar they belong to; those of URLs are cached on
disk."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence

from tgm_scale.data.access import http
from tgm_scale.data.access.addresses import is_http, is_url, place
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.access.patience import retrying
from tgm_scale.data.access.storage import file_system
from tgm_scale.runtime.outside.refusals import PermanentError
from tgm_scale.runtime.outside.tars import BLOCK, size_by_header
from tgm_scale.runtime.terminal import without_secrets

_DESCRIPTORS = 32  # open shards: several read windows of the order, far below the usual limit of 1024


class _Descriptor:
    """Open file, closed with its last reference (a thread may still read one that another thread evicts)."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class RangeReader:
    """Reader of byte ranges from many files; the most recently used local ones stay open. It is thread-safe and
    pickles empty.

    Ranges of URLs are kept in `cache`, if given, under `version`, a string that changes with their content.
    patience: seconds of waiting for storage; see `retrying`."""

    def __init__(self, cache: DiskCache | None = None, version: str = "", patience: float | None = None) -> None:
        self._cache, self._version, self._patience = cache, version, patience
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._expected: dict[str, tuple[int, str]] = {}  # size and tag of whole files, where an index states them
        self._tags: dict[str, str] = {}  # of HTTP files, as first seen

    def expect(self, path: str, size: int, tag: str = "") -> None:
        """Expect this size of a file and, where known, this tag (see `tag`): responses about a file of another size
        or tag are rejected, and data cached from one is not used."""
        self._expected[path] = size, tag
        if tag and is_http(path):
            self._tags[path] = tag

    def sighted(self, path: str, size: int, tag: str) -> None:
        """Call `expect` for a file without an expectation yet, so that data cached before it was replaced is not
        used."""
        if self._cache and tag and path not in self._expected:
            self.expect(path, size, tag)

    def read(
        self, path: str, offset: int, size: int, members: Sequence[tuple[int, int]] = (), refresh: bool = False
    ) -> bytes:
        """Read exactly `size` bytes from `offset`. Raises OSError after several attempts.

        Ranges of URLs go through `cache`. members: offset and size in the file of the tar members in this range;
        each must be preceded by its header, else the bytes are neither returned nor cached. refresh: do not read
        from the cache."""
        if not is_url(path):
            return self._fetch(path, offset, size, ())
        if size == 0 and not members:  # an HTTP range cannot be empty
            return b""
        before = BLOCK if members else 0
        _, tag = self._expected.get(path, (0, ""))
        key = (f"{self._version} {tag}".strip(), place(path), offset - before, size + before)
        data = self._cache.get(*key) if self._cache else None
        if data is not None and (refresh or _foreign(data, offset - before, members)):
            assert self._cache is not None
            self._cache.drop(*key)
            data = None
        if data is None:
            data = self._fetch(path, offset - before, size + before, members)
            if self._cache:
                self._cache.put(data, *key)
        return data[before:]

    def _fetch(self, path: str, offset: int, size: int, members: Sequence[tuple[int, int]]) -> bytes:
        def attempt() -> bytes:
            data = self._read_url(path, offset, size) if is_url(path) else self._read_path(path, offset, size)
            if len(data) != size:
                raise OSError(
                    f"{len(data)} bytes came where {size} were asked for at {offset}: the shard was replaced while in "
                    "use, or its server does not honour range requests"
                )
            if why := _foreign(data, offset, members):
                raise OSError(why)
            return data

        return retrying(attempt, path, self._patience)

    def _read_url(self, path: str, offset: int, size: int) -> bytes:
        system, name = file_system(path)
        if not is_http(path):
            return system.cat_file(name, start=offset, end=offset + size)
        answer = http.read_range(system, name, offset, size)
        total, _ = self._expected.get(path, (None, ""))
        if total is not None and answer.total not in (None, total):
            raise PermanentError(
                f"{without_secrets(path)}: {answer.total} bytes, {total} by its index: it was replaced; start again"
            )
        if answer.tag != self._tags.setdefault(path, answer.tag):
            raise PermanentError(
                f"{without_secrets(path)}: its ETag and time changed: it was replaced under the run; start again"
            )
        return answer.data

    def _read_path(self, path: str, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(path)
        try:
            data = os.pread(descriptor.number, size, offset)
        except OSError:
            with self._lock:  # reopening the file fixes a stale handle of a network file system
                self._open.pop(path, None)
            raise
        while 0 < len(data) < size:
            more = os.pread(descriptor.number, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def _descriptor(self, path: str) -> _Descriptor:
        with self._lock:
            descriptor = self._open.pop(path, None) or _Descriptor(path)
            self._open[path] = descriptor
            if len(self._open) > _DESCRIPTORS:
                self._open.popitem(last=False)
            return descriptor

    def __reduce__(self) -> tuple:
        return RangeReader, (self._cache, self._version, self._patience)


def _foreign(data: bytes, offset: int, members: Sequence[tuple[int, int]]) -> str:
    """Return why these bytes, which start at `offset`, are not from the tar with these members; "" if they are."""
    for at, size in members:
        stated = size_by_header(data[at - BLOCK - offset : at - offset])
        if stated is None:
            return f"other bytes came than those of the shard: no header of a tar before the member at {at}"
        if stated not in (size, 0):  # 0: the size is in a pax record before it
            return f"other bytes came than those of the shard: the header before the member at {at} is another's"
    return ""
