"""Access to local files and URLs: whole reads, opening, size and content tag, atomic writes. No shell."""

from __future__ import annotations

import copy
import errno
import gzip
import io
import os
import stat
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from tgm_scale.data.access import http
from tgm_scale.data.access.addresses import is_http, is_url
from tgm_scale.data.access.patience import retrying
from tgm_scale.runtime.outside.refusals import PermanentError
from tgm_scale.runtime.terminal import without_secrets

GZIP_MARK = b"\x1f\x8b"
SMALL = 1 << 29  # bytes; an index of a million samples has 150 MB
_FORSAKEN = 3600.0  # seconds without growth after which a partial file counts as abandoned
_BY_CONTENT = ("ETag", "etag", "generation")  # as S3, GCS and others report it
_BY_TIME = ("LastModified", "updated", "last_modified", "mtime", "created")
_S3_ONCE = {
    "retries": {"total_max_attempts": 1},
    "connect_timeout": http.CONNECT_SECONDS,
    "read_timeout": http.READ_SECONDS,
}


def file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the file's name in it. Raises ValueError where its package is
    missing."""
    options: dict[str, Any] = {"client_kwargs": http.client_settings()} if is_http(url) else {}
    if in_s3 := url.startswith("s3://"):  # one attempt: `retrying` reports and bounds the waits
        options = {"config_kwargs": copy.deepcopy(_S3_ONCE)}  # botocore modifies it, and it is fsspec's cache key
    try:
        system, name = fsspec.url_to_fs(url, **options)
        if in_s3:
            system.retries = 1
        return system, name
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise ValueError(
            f"{without_secrets(url)}: reading from {protocol} needs one more package ({error})"
        ) from error


def read_small(path: str, patience: float | None = None, limit: int | None = None) -> bytes | None:
    """Return a whole file, None where it does not exist (public buckets deny access to missing files).

    limit: bytes, SMALL at most. Raises PermanentError where the file is larger."""
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
            raise PermanentError(f"more than {limit:,} bytes")
        return data

    try:
        return retrying(read, path, patience)
    except (FileNotFoundError, PermissionError, NotAFile, NotADirectoryError):
        return None


def unpacked(data: bytes, path: str) -> bytes:
    """Return decompressed gzip data, other bytes unchanged. Raises ValueError for broken gzip data or more than
    SMALL bytes."""
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
    """Return a string that changes with the content of a URL's file, as its storage reports it (ETag, times); "" if
    it does not."""
    if not is_url(path):
        return ""
    system, name = file_system(path)
    if is_http(path):
        return retrying(lambda: http.tag(system, name), path, patience)
    info = retrying(lambda: system.info(name), path, patience)
    return _tag_of(info)


def _tag_of(info: Mapping[str, Any]) -> str:
    """Return the content tag from a file's info by a storage other than HTTP. Times are used only where there is
    nothing else: some servers list them with milliseconds, but give whole seconds for a single file."""
    of_content = next((str(info[word]) for word in _BY_CONTENT if info.get(word) is not None), "")
    return of_content or " ".join(str(info[word]) for word in _BY_TIME if info.get(word) is not None)


def same_tag(kept: str, now: str) -> bool:
    """Return whether a stored tag is of the same content; tags stored by earlier versions have times after the
    identifying part."""
    return kept == now or (bool(now) and kept.startswith(f"{now} "))


def size(path: str, patience: float | None = None) -> int:
    """Return the size of a file in bytes. Raises OSError."""
    return size_and_tag(path, patience)[0]


def size_and_tag(path: str, patience: float | None = None) -> tuple[int, str]:
    """Return the size of a file in bytes and, for a URL, its `tag`. Raises OSError."""
    if not is_url(path):
        return os.stat(path).st_size, ""
    system, name = file_system(path)

    def ask() -> tuple[int, str]:
        if is_http(path):
            found, tag = http.size_and_tag(system, name)
        else:
            info = system.info(name)
            found, tag = info.get("size"), _tag_of(info)
        if found is None:
            raise PermanentError(
                f"{without_secrets(path)}: its server does not say how many bytes it has (Content-Length, or after "
                "the / of Content-Range): use one that does"
            )
        return int(found), tag

    return retrying(ask, path, patience)


class NotAFile(ValueError):
    """Something other than a file at a file's path: a folder, a pipe, a link to itself."""


def open_file(path: str) -> BinaryIO:
    """Open a local file. Raises NotAFile for anything else: opening a pipe would wait for its writer."""
    try:
        if stat.S_ISREG(os.stat(path).st_mode):
            return open(path, "rb")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    raise NotAFile(f"{path}: not a file, but a folder, a pipe or a link to itself: put the file in its place")


def open_seekable(path: str, patience: float | None = None) -> BinaryIO:
    """Open a file for reading with seeks; URLs are fetched 64 KiB at a time. Raises as `open_file` does."""
    if not is_url(path):
        return open_file(path)
    if not (known := size(path, patience)):  # fsspec would return a stream, which cannot seek
        return io.BytesIO()
    system, name = file_system(path)
    told = {}
    if is_http(path):
        retrying(
            lambda: http.read_range(system, name, 0, 1), path, patience
        )  # fsspec's own error for this would be less clear
        told = {"size": known}  # avoids a HEAD request for the size
    return system.open(name, "rb", block_size=1 << 16, **told)


def partial_of(path: Path) -> Path:
    """Return the temporary path for writing `path`, unique to this thread among all processes of all hosts."""
    return path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}.partial")


def drop_left_over(folder: Path, pattern: str) -> None:
    """Remove temporary files of this pattern left by killed processes: of this host, or unchanged for an hour."""
    for part in filter(Path.is_file, folder.glob(f"{pattern}.partial")):
        with suppress(FileNotFoundError):  # belongs to another job that has finished by now
            if _left_over(part):
                part.unlink()


def being_written(folder: Path, pattern: str) -> bool:
    """Return whether a running process is writing a temporary file of this pattern."""
    for part in filter(Path.is_file, folder.glob(f"{pattern}.partial")):
        with suppress(FileNotFoundError):
            if not _left_over(part):
                return True
    return False


def _left_over(part: Path) -> bool:
    *before, process, _, _ = part.name.split(".")
    gone = ".".join(before).endswith(f".{os.uname().nodename}") and not Path("/proc", process).exists()
    return gone or time.time() - part.stat().st_mtime > _FORSAKEN


def written_first(file: Path, data: bytes) -> bool:
    """Create the file with this data and return whether it did not exist before. Of processes that start at once,
    exactly one is the first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    drop_left_over(file.parent, f"{file.name}*")
    partial = partial_of(file)
    try:
        partial.write_bytes(data)
        os.link(partial, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if file.exists():
            return False
        write_atomically(file, data)
    finally:
        partial.unlink(missing_ok=True)
    return True


def write_atomically(path: Path, data: bytes | Iterable[bytes], durable: bool = True) -> None:
    """Write a temporary file beside it, flush it to disk, and rename: readers see the old file or the whole new
    one. Without `durable` there is no flush, and a machine failure may leave a partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path)
    try:
        with open(partial, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
