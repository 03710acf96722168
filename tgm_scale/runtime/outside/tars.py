"""Headers of tars from outside, checked before their values are used."""

from __future__ import annotations

import tarfile
from collections.abc import Generator, Iterator
from typing import BinaryIO

from tgm_scale.runtime.outside.stand_ins import START, stand_in

BLOCK = tarfile.BLOCKSIZE
_ZEROS_AT_ONCE = 1 << 16
_MOST = 1 << 43  # bytes of a member: file systems answer EINVAL to a seek beyond 16 TiB, as a failing disk would
_HEADER_OF_A_HEADER = 1 << 20  # bytes of a long name or a pax header; a file's name has at most 4,096
_HEADERS_OF_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"L", b"K")
# raised by tarfile for invalid records: lengths, sparse maps, headers of headers without end
_BROKEN_RECORDS = (ValueError, LookupError, ArithmeticError, TypeError, RecursionError, MemoryError)
_PACKED = (
    (b"\x1f\x8b", "gzip", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unzstd"),
    (b"BZh", "bzip2", "bunzip2"),
    (b"\xfd7zXZ", "xz", "unxz"),
    (b"PK\3\4", "zip", "unzip"),
)


class BrokenTar(ValueError):
    """Reason why a tar does not continue, or end, as a tar should."""


class _Header(tarfile.TarInfo):
    """Tar header whose sizes are checked before bytes are read by them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if not 0 <= header.size < _MOST or (header.type in _HEADERS_OF_HEADERS and header.size > _HEADER_OF_A_HEADER):
            raise tarfile.ReadError(f"a header says {header.size} bytes")
        return header


def size_by_header(block: bytes) -> int | None:
    """Return the size of the member after a header, None where the block is not a header."""
    try:
        return _Header.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.TarError:
        return None


def members_of(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar, and of those appended to it (`cat a.tar b.tar`); their sizes may exceed its end.
    Raises BrokenTar where a header is invalid or the end is missing; an OSError is the storage's, which may pass."""
    if other := _another(file):
        raise BrokenTar(other)
    at: int | None = 0
    while at is not None:
        file.seek(at)
        end = yield from _one_tar(file)
        if cut := _cut(file, end):
            raise BrokenTar(cut)
        at = _next_archive(file, end)


def _one_tar(file: BinaryIO) -> Generator[tarfile.TarInfo, None, int]:
    """Yield the members of the tar that begins here; return its end."""
    try:
        tar = tarfile.open(fileobj=file, mode="r:", tarinfo=_Header)  # noqa: SIM115 (it holds nothing but `file`)
        before = -1
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if not 0 <= member.size < _MOST or tar.offset <= before:  # a pax record can set these
                raise tarfile.ReadError(f"a header says {member.size} bytes")
            before = tar.offset
            yield member
        return tar.offset
    except tarfile.TarError as error:
        raise BrokenTar(str(error)) from None
    except _BROKEN_RECORDS as error:
        raise BrokenTar(f"a header that is none ({type(error).__name__}: {error})") from None


def _another(file: BinaryIO) -> str:
    """Return what the file is, if packed or other content in place of a tar, else ""; rewind it."""
    start = file.read(START)
    file.seek(0)
    if other := stand_in(start):
        return other
    for mark, name, tool in _PACKED:
        if start.startswith(mark):
            return f"compressed ({name}): unpack it first, such as with {tool}, since samples are read by range"
    return ""


def _next_archive(file: BinaryIO, end: int) -> int | None:
    """Return where another tar begins after the end mark of one, None where only zeros follow."""
    file.seek(end)
    at = end
    while block := file.read(_ZEROS_AT_ONCE):
        if rest := block.lstrip(b"\0"):
            return at + (len(block) - len(rest)) // BLOCK * BLOCK
        at += len(block)
    return None


def _cut(file: BinaryIO, end: int) -> str:
    """Return why the tar does not end properly, "" where it does: tarfile takes a broken header for the end."""
    file.seek(end)
    block = file.read(BLOCK)
    if len(block) < BLOCK:
        return f"ends at byte {end + len(block)} without the end mark"
    return f"no member header at byte {end}" if block.strip(b"\0") else ""
