"""Where shards lie: a local path or a URL. Lists them, reads small files whole and large ones by range; no shell."""

from __future__ import annotations

import errno
import glob
import gzip
import io
import os
import stat
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec
from braceexpand import braceexpand

from tgm_scale.data.access import http
from tgm_scale.data.access.addresses import base_name, is_http, is_url, place, split_query
from tgm_scale.data.access.names import real_place
from tgm_scale.data.access.patience import Lasting, retrying
from tgm_scale.data.lists.foreign_tables import foreign_folder, foreign_table
from tgm_scale.runtime.outside.tars import BLOCK, size_by_header
from tgm_scale.runtime.secrets import without_secrets

GZIP_MARK = b"\x1f\x8b"
SMALL = 1 << 29  # bytes; an index of a million samples has 150 MB
_TAGS = ("ETag", "etag", "generation", "LastModified", "updated", "last_modified", "mtime", "created")  # S3, GCS, ...
_DESCRIPTORS = 32  # shards kept open: several windows of the order's reads, far below the usual limit of 1024


class RangeCache(Protocol):
    """Keeps byte ranges (see disk_cache)."""

    def get(self, *key: str | int) -> bytes | None: ...
    def put(self, data: bytes, *key: str | int) -> None: ...
    def drop(self, *key: str | int) -> None: ...


class NoShards(ValueError):
    """There is no shard where one was named."""


def expand(spec: str | os.PathLike | list[str]) -> list[str]:
    """Shards named by a folder, a glob, a brace pattern (`{000..099}.tar`), a .tar, or a list of these.

    A folder or a glob gives its .tar files in the order of their names. Raises ValueError naming the part of `spec`
    that holds no shard."""
    parts = [os.fspath(spec)] if isinstance(spec, (str, os.PathLike)) else [os.fspath(part) for part in spec]
    shards: list[str] = []
    for part in parts:
        whole = [part] if not is_url(part) and os.path.exists(part) else list(braceexpand(part))
        for item in whole:
            found = _expand_url(item) if is_url(item) else _expand_path(item)
            if not found:
                raise _no_shards(item)
            shards += found
    if not shards:
        raise ValueError("the list of shards is empty; name a folder, a pattern or .tar files")
    places = Counter(map(real_place, shards))
    if len(places) != len(shards):
        twice = next(shard for shard in shards if places[real_place(shard)] > 1)
        raise ValueError(
            f"shard {without_secrets(twice)!r} is named twice; its samples would count double: name it once"
        )
    return shards


def _no_shards(item: str) -> NoShards:
    """What is there instead, where it is something that is known."""
    item = without_secrets(item)
    there = [] if is_url(item) or not os.path.isdir(item) else sorted(os.listdir(item))
    if not there and os.path.isfile(item):
        there = [os.path.basename(item)]
    if packed := [name for name in there if _unpacked(name)]:
        return NoShards(_unpack_first(item, packed))
    refusal = foreign_folder(item, there, below=True) if os.path.isdir(item) else foreign_table(item)
    if refusal and not is_url(item):
        return NoShards(refusal)
    if not is_url(item) and os.path.isdir(item) and not there:
        return NoShards(f"{item!r} is an empty folder: name one that holds shards (*.tar) or videos")
    return NoShards(f"no shards (*.tar) at {item!r}; make some with `tgm-scale shards make` or name another")


_UNPACKERS = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.zst": "unzstd", ".tar.bz2": "bunzip2", ".tar.xz": "unxz"}


def _unpacked(name: str) -> str:
    """What a compressed tar is called once it is unpacked; "" for other files."""
    return next((f"{name.removesuffix(end)}.tar" for end in _UNPACKERS if name.endswith(end)), "")


def _unpack_first(item: str, packed: list[str]) -> str:
    tool = next(tool for end, tool in _UNPACKERS.items() if packed[0].endswith(end))
    return (
        f"{item!r} holds compressed tars ({base_name(packed[0])}): samples are read by range, so unpack them first, "
        f"such as with {tool}"
    )


def _shards_among(names: list[str], item: str) -> list[str]:
    """In order of names. Raises ValueError where some are compressed: these would be left out without a word."""
    found = sorted(name for name in names if _is_shard(name))
    packed = sorted(name for name in names if _unpacked(name) and _unpacked(name) not in found)
    if packed and not base_name(packed[0]).startswith("."):
        kind = ValueError if found else NoShards
        raise kind(_unpack_first(without_secrets(item), packed))
    return found


def _expand_path(item: str) -> list[str]:
    if os.path.isdir(item):
        return _shards_among([entry.path for entry in os.scandir(item)], item)
    if os.path.isfile(item):
        return [item] if _is_shard(item) else []
    return _shards_among(glob.glob(item), item)


def _expand_url(item: str) -> list[str]:
    before, query = split_query(item)
    if "***@" in before or query.endswith("=***"):
        raise ValueError(f"{item!r}: *** stands for what was not kept in a run's files: give the whole address again")
    pattern = glob.has_magic(before.partition("://")[2].partition("/")[2])  # a host may have brackets: [::1]
    if _is_shard(item) and not pattern:
        return [item]
    if query:
        raise ValueError(
            f"{without_secrets(item)!r}: a folder or a pattern with a query behind it cannot be listed: name its "
            "shards, by braces such as {00000..00099}.tar"
        )
    system, path = file_system(item)

    def look() -> list[str]:
        return system.glob(path) if pattern else system.ls(path, detail=False)

    try:
        found = retrying(look, item)
    except FileNotFoundError:
        return []
    return _shards_among([system.unstrip_protocol(name) for name in found], item)


def _is_shard(name: str) -> bool:
    return base_name(name).endswith(".tar") and not base_name(name).startswith(".")


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system for a URL, and the name it has there. Raises ValueError where its package is missing."""
    options = {"client_kwargs": http.client_settings()} if is_http(url) else {}
    try:
        return fsspec.url_to_fs(url, **options)
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise ValueError(
            f"{without_secrets(url)}: reading from {protocol} needs one more package ({error})"
        ) from error


def read_small(path: str, patience: float | None = None, limit: int | None = None) -> bytes | None:
    """A whole file, None where there is none (a public bucket forbids what it does not have).

    limit: bytes, SMALL at most. Raises Lasting where the file has more."""
    limit = SMALL if limit is None else min(limit, SMALL)

    def read() -> bytes:
        if not is_url(path):
            with open_file(path) as file:
                data = file.read(limit + 1)
        else:
            system, name = file_system(path)
            if is_http(path):
                return http.read_whole(system, name, limit)
            data = bytes(limit + 1) if system.size(name) > limit else system.cat_file(name)
        if len(data) > limit:
            raise Lasting(f"more than {limit:,} bytes")
        return data

    try:
        return retrying(read, path, patience)
    except (FileNotFoundError, PermissionError, NotAFile, NotADirectoryError):
        return None


def unpacked(data: bytes, path: str) -> bytes:
    """What a gzip holds, other bytes as they are. Raises ValueError for one that is broken or has more than SMALL."""
    if data[:2] != GZIP_MARK:
        return data
    try:
        with gzip.open(io.BytesIO(data)) as stream:
            whole = stream.read(SMALL + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: a broken gzip ({error}): copy it again") from None
    if len(whole) > SMALL:
        raise ValueError(f"{path}: a gzip of more than {SMALL:,} bytes: give it unpacked, in parts")
    return whole


def tag(path: str, patience: float | None = None) -> str:
    """What changes with the content of a URL's file, by its storage's word (ETag, times); "" where there is none."""
    if not is_url(path):
        return ""
    system, name = file_system(path)
    if is_http(path):
        return retrying(lambda: http.tag(system, name), path, patience)
    said = retrying(lambda: system.info(name), path, patience)
    return " ".join(str(said[word]) for word in _TAGS if said.get(word) is not None)


def size(path: str, patience: float | None = None) -> int:
    """Bytes of a file. Raises OSError."""
    if not is_url(path):
        return os.stat(path).st_size
    system, name = file_system(path)
    return retrying(lambda: int(system.size(name)), path, patience)


class NotAFile(ValueError):
    """Something else has the name of a file: a folder, a pipe, a link to itself."""


def open_file(path: str) -> BinaryIO:
    """A local file. Raises NotAFile for what is none: to open a pipe is to wait for its writer."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    raise NotAFile(f"{path}: not a file, but a folder, a pipe or a link to itself: put the file in its place")


def open_seekable(path: str) -> BinaryIO:
    """A file to scan by seeking; of a URL, 64 KiB are fetched at a time. Raises as `open_file` does."""
    if not is_url(path):
        return open_file(path)
    system, name = file_system(path)
    try:
        return system.open(name, "rb", block_size=1 << 16)
    except FileNotFoundError as error:  # fsspec says so of any answer that it did not get
        cause = error.__cause__
        if isinstance(cause, Exception) and not isinstance(cause, FileNotFoundError):
            raise cause from None
        raise


def write_atomically(path: Path, data: bytes | Iterable[bytes], lasting: bool = True) -> None:
    """Write beside, force to disk, rename: a reader sees the old file or the whole new one. Without `lasting` the disk
    takes its time, and a machine that fails may leave part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with open(partial, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class _Descriptor:
    """An open file, closed when its last user lets go of it (a thread may still read what another evicts)."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class RangeReader:
    """Reads byte ranges of many files; the last few local ones stay open. Threads may share it; it pickles empty.

    Ranges of URLs are kept in `cache` if there is one, under `version`, a word that changes with their content.
    patience: seconds of waiting for a storage; see `retrying`."""

    def __init__(self, cache: RangeCache | None = None, version: str = "", patience: float | None = None) -> None:
        self._cache, self._version, self._patience = cache, version, patience
        self._open: OrderedDict[str, _Descriptor] = OrderedDict()
        self._lock = threading.Lock()
        self._expected: dict[str, tuple[int, str]] = {}  # size and tag of whole files, where an index says so
        self._tags: dict[str, str] = {}  # of HTTP files, as they were first seen

    def expect(self, path: str, size: int, tag: str = "") -> None:
        """A file is of this size and, where it is known, has this tag (see `tag`); an answer about another is refused,
        and what was kept of another is not taken."""
        self._expected[path] = size, tag
        if tag and is_http(path):
            self._tags[path] = tag

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises OSError after several attempts."""
        return self.read_members(path, offset, size, []) if is_url(path) else self._fetch(path, offset, size, [])

    def read_members(
        self, path: str, offset: int, size: int, members: list[tuple[int, int]], anew: bool = False
    ) -> bytes:
        """`read` of a URL, by `cache`. members: offset and size in the file of those of a tar that it holds; each has
        its header before it, and bytes where it has not are neither given nor kept. anew: nothing kept is taken."""
        before = BLOCK if members else 0
        _, tag = self._expected.get(path, (0, ""))
        key = (f"{self._version} {tag}".strip(), place(path), offset - before, size + before)
        data = self._cache.get(*key) if self._cache else None
        if data is not None and (anew or _foreign(data, offset - before, members)):
            assert self._cache is not None
            self._cache.drop(*key)
            data = None
        if data is None:
            data = self._fetch(path, offset - before, size + before, members)
            if self._cache:
                self._cache.put(data, *key)
        return data[before:]

    def _fetch(self, path: str, offset: int, size: int, members: list[tuple[int, int]]) -> bytes:
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
            raise Lasting(
                f"{without_secrets(path)}: {answer.total} bytes, {total} by its index: it was replaced; start again"
            )
        if answer.tag != self._tags.setdefault(path, answer.tag):
            raise Lasting(
                f"{without_secrets(path)}: its ETag and time changed: it was replaced under the run; start again"
            )
        return answer.data

    def _read_path(self, path: str, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(path)
        try:
            data = os.pread(descriptor.number, size, offset)
        except OSError:
            with self._lock:  # a stale handle of a network file system is cured by opening the file anew
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


def _foreign(data: bytes, offset: int, members: list[tuple[int, int]]) -> str:
    """Why these bytes from `offset` on are not of the tar that holds the members there, "" where they are."""
    for at, size in members:
        said = size_by_header(data[at - BLOCK - offset : at - offset])
        if said is None:
            return f"other bytes came than those of the shard: no header of a tar before the member at {at}"
        if said not in (size, 0):  # 0: a pax record before it has the size
            return f"other bytes came than those of the shard: the header before the member at {at} is another's"
    return ""
