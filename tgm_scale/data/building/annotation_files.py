"""Annotation files read as a stream of rows, one JSON object each: memory use does not grow with the number of rows.

Formats: JSON Lines, a JSON array of objects, CSV with a header (`,`, tab, `;`, `|`); UTF-8 or, with a byte order
mark, UTF-16; each also as .gz; one file, a folder of them, or a pattern."""

from __future__ import annotations

import glob
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tgm_scale.data.building.annotation_rows import INTERNVID, SCORES
from tgm_scale.data.lists.foreign_tables import HEAD, foreign_folder, foreign_table
from tgm_scale.data.lists.row import COLUMNS, FAULT, header_of, table_rows, without_separator_line
from tgm_scale.runtime.outside.json_text import json_at

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
_TABLES = (".csv", ".tsv", ".txt")
_PIECE = 1 << 20  # characters of an array that are read at a time
_LONGEST = 1 << 26  # characters of one object: an unclosed quotation mark would have no end
_COLUMNS = {name for names in COLUMNS.values() for name in names} | {key.lower() for key in INTERNVID} | set(SCORES)


def files_of(spec: str | Path) -> list[Path]:
    """Return the files that a path, a folder or a pattern names, sorted by name. Raises ValueError."""
    path = Path(spec)
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.name.removesuffix(".gz").endswith(SUFFIXES))
    else:
        found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(str(spec)))]
    refusal = foreign_table(str(spec))
    if refusal is None and path.is_dir():  # one foreign table among others would be skipped silently
        refusal = foreign_folder(str(path), os.listdir(path), below=not found)
    if refusal:
        raise ValueError(f"--annotations {refusal}")
    if not found:
        wanted = ", ".join(SUFFIXES)
        raise ValueError(f"--annotations {spec}: no such file; name a file, a folder or a pattern ({wanted}, .gz)")
    return found


def lines_of(files: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield the position of each row, and the row as JSON. Raises ValueError for a file of another format."""
    for file in files:
        before = f"{file.name} " if len(files) > 1 else ""
        with _opened(file) as stream:
            try:
                for where, row in _rows(file, stream):
                    yield before + where, row
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"--annotations {file}: a broken gzip ({error}): copy it again") from None
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"--annotations {file}: not UTF-8, nor whole UTF-16 ({error}): save the file as UTF-8"
                ) from None


def _opened(file: Path) -> IO[bytes]:
    stream = open(file, "rb")  # noqa: SIM115 (closed by the caller)
    packed = stream.read(2) == b"\x1f\x8b"
    stream.seek(0)
    return gzip.open(stream, "rb") if packed else stream  # type: ignore[return-value]


def _rows(file: Path, stream: IO[bytes]) -> Iterator[tuple[str, bytes]]:
    head = stream.read(1 << 16)
    stream.seek(0)
    if refusal := foreign_table(str(file), head[:HEAD]):
        raise ValueError(f"--annotations {refusal}")
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = io.TextIOWrapper(stream, encoding=encoding, newline="")
    if file.name.removesuffix(".gz").endswith(_TABLES):
        yield from _of_csv(file, text)
    elif head.decode(encoding, "ignore").lstrip().startswith("["):
        yield from _of_array(file, text)
    elif encoding == "utf-16":
        yield from ((f"line {number}", line.encode()) for number, line in enumerate(text, 1) if line.strip())
    else:  # bytes: a line that is not UTF-8 is a broken row, and the others are still read
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield f"line {number}", line.removeprefix(b"\xef\xbb\xbf")


def _of_csv(file: Path, text: IO[str]) -> Iterator[tuple[str, bytes]]:
    numbered = ((number, without_separator_line(line)) for number, line in enumerate(text, 1))
    before, first = next(((number, line) for number, line in numbered if line.strip()), (1, ""))
    header = header_of(first, _COLUMNS, f"--annotations {file}")
    if header is None:
        raise ValueError(
            f"--annotations {file}: its first line names none of the columns that are read: {', '.join(COLUMNS)}, or "
            f"{', '.join(INTERNVID)}"
        )
    columns, delimiter = header
    for number, fields in table_rows(text, columns, delimiter, f"--annotations {file}", before + 1):
        yield f"line {number}", json.dumps(_with_numbers(fields)).encode()


def _with_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its scores as numbers, without empty fields."""
    row: dict[str, Any] = {name: value for name, value in fields.items() if value.strip()}
    for name in set(SCORES) & row.keys():
        try:
            row[name] = float(row[name])
        except ValueError:
            return {FAULT: f"{name} is {row[name]!r}: wanted a number"}
    return row


def _of_array(file: Path, stream: IO[str]) -> Iterator[tuple[str, bytes]]:
    number, text = 0, stream.read(_PIECE)
    at = text.index("[") + 1
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if text[at : at + 1] == "]":
            if (text[at + 1 :] + stream.read(_PIECE)).strip():
                raise ValueError(f"--annotations {file}: more text after the end of its array")
            return
        try:
            value, at = json_at(text, at)
        except json.JSONDecodeError as error:
            more = "" if len(text) - at > _LONGEST else stream.read(max(_PIECE, len(text) - at))
            if not more:
                raise ValueError(
                    f"--annotations {file}: object {number + 1} of its array is no JSON ({error.msg}); one object a "
                    "line is read, too"
                ) from None
            text, at = text[at:] + more, 0
            continue
        except ValueError as error:
            raise ValueError(f"--annotations {file}: object {number + 1}: {error}") from None
        number += 1
        yield f"object {number}", _line(file, number, value)


def _line(file: Path, number: int, value: Any) -> bytes:
    try:
        return json.dumps(value).encode()
    except RecursionError:  # reading it succeeded, from a shallower stack
        raise ValueError(f"--annotations {file}: object {number}: brackets in brackets without end") from None
