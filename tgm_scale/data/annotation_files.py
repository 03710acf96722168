"""Files of annotations as a stream of rows, one JSON object each: what memory holds does not grow with the rows.

JSON Lines, a JSON array of objects, CSV or TSV with a header; each also as .gz; one file, a folder of them, or a
pattern."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_PIECE = 1 << 20  # characters of an array that are read at a time


def files_of(spec: str | Path) -> list[Path]:
    """The files that a path, a folder or a pattern names, in the order of their names. Raises ValueError."""
    path = Path(spec)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(SUFFIXES))
    else:
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(spec)))]
    if not found:
        wanted = ", ".join(SUFFIXES)
        raise ValueError(f"--annotations {spec}: no such file; name a file, a folder or a pattern ({wanted}, .gz)")
    return found


def lines_of(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Where each row stands, and the row as JSON. Raises ValueError for a file that is none of these."""
    for file in files:
        before = f"{file.name} " if len(files) > 1 else ""
        with _opened(file) as stream:
            try:
                for number, row in _rows(file, stream):
                    yield f"{before}line {number}", row
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"--annotations {file}: a broken gzip ({error}): copy it again") from None


def _opened(file: Path) -> IO[bytes]:
    stream = open(file, "rb")  # noqa: SIM115 (closed by the caller)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.open(stream, "rb") if packed else stream  # type: ignore[return-value]


def _rows(file: Path, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    name = file.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        yield from _of_csv(file, stream, "\t" if name.endswith(".tsv") else ",")
        return
    number = 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        if number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[") and not line.strip().endswith(b"]"):
            break
        if number == 1 and line.strip().startswith(b"[{"):  # an array in one line
            break
        yield number, line.removeprefix(b"\xef\xbb\xbf")
    else:
        return
    stream.seek(0)
    yield from _of_array(file, io.TextIOWrapper(stream, encoding="utf-8-sig"))


def _of_csv(file: Path, stream: IO[bytes], delimiter: str) -> Iterator[tuple[int, bytes]]:
    reader = csv.DictReader(io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter=delimiter)
    try:
        for row in reader:
            if None in row:  # more fields than columns
                yield reader.line_num, b"more fields than columns: quote what holds a delimiter"
            else:
                yield reader.line_num, json.dumps({key: value for key, value in row.items() if value}).encode()
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"--annotations {file} line {reader.line_num}: no CSV in UTF-8 ({error})") from None


def _of_array(file: Path, stream: IO[str]) -> Iterator[tuple[int, bytes]]:
    """The objects of a JSON array, parsed as they are read."""
    decoder, text, number, ended = json.JSONDecoder(), stream.read(_PIECE).lstrip()[1:], 0, False
    while True:
        text = text.lstrip().removeprefix(",").lstrip()
        if text.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(text)
        except json.JSONDecodeError as error:
            more = "" if ended else stream.read(_PIECE)
            ended = not more
            if ended:
                raise ValueError(
                    f"--annotations {file}: object {number + 1} of its array is no JSON ({error.msg}); one object a "
                    "line is read, too"
                ) from None
            text += more
            continue
        number += 1
        yield number, _plain(value)
        text = text[end:]


def _plain(value: Any) -> bytes:
    return json.dumps(value).encode()
