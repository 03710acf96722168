"""A row of a list, whatever its layout."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS
from tgm_scale.data.lists.text import shown

_LINES_IN_A_FIELD = 50  # more are a quote that was never closed
_VIDEOS = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
FAULT = "\0fault"  # the key of why a row cannot be used; no column is called so

COLUMNS = {  # the names that a column goes by
    "file": ("file", "path", "video", "filename", "file_name", "file_path", "filepath", "video_path", "video_name",
             "clip", "video_id"),
    "caption": ("caption", "captions", "text", "sentence", "description"),
    "label": ("label", "class", "category", "action", "class_name"),
    "group": ("group",),
    "split": ("split", "subset"),
    "start": ("start", "start_time", "time_start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_time", "time_end", "end_seconds", "end_timestamp"),
}  # fmt: skip


_SEPARATOR_LINE = re.compile(r"\s*\"?sep=[^\w\n]?\"?[,;|\t]*\r?\n", re.I)


@dataclass
class Row:
    """A row of a list. `single`: its label may not be several in one field. `fault`: why it cannot be used. Captions
    and the label are as they stand there: `caption_fault` and `label_text` check them."""

    where: str
    path: str
    captions: list[Any] = field(default_factory=list)
    label: Any = None
    group: str | None = None
    split: str | None = None
    start: str = ""
    end: str = ""
    single: bool = True
    fault: str = ""


Rows = tuple[str, Iterable[Row]]  # the layout in words, and the rows


def header_of(first: str, known: set[str], path: str) -> tuple[list[str], str] | None:
    """The columns that a first line names, and their delimiter; None where none of them is `known`. Raises ValueError
    for two of one name."""
    for delimiter in sorted(",\t;|", key=lambda mark: -first.count(mark)):
        columns = [name.strip().strip("\"'").lower() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if any(name.endswith(_VIDEOS) for name in columns):
            return None
        if delimiter in first and known & set(columns):
            if twice := [name for name in columns if name in known and columns.count(name) > 1]:
                raise ValueError(f"{path}: {columns.count(twice[0])} columns are named {twice[0]}: rename all but one")
            return columns, delimiter
    return ([first.strip().lower()], ",") if first.strip().lower() in COLUMNS["file"] else None


def table_rows(
    lines: Iterable[str], columns: list[str], delimiter: str, place: str, first: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Of each row of a CSV that is not blank the line where it begins and its fields by their columns, or FAULT.

    first: the number of the first of the lines. Raises ValueError, with `place`, for a quotation mark that is not
    closed: the rows up to the next one, or to the end, would be a part of its field."""
    newest: deque[str] = deque(maxlen=1)

    def kept() -> Iterator[str]:
        for line in lines:
            newest.append(line)
            yield line

    reader = csv.reader(kept(), delimiter=delimiter, strict=True)
    while True:
        began = first + reader.line_num
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error) or first + reader.line_num > began + 1:
                raise ValueError(f"{place} line {began}: no CSV ({error}): close its quotation marks") from None
            values = next(csv.reader(newest, delimiter=delimiter))  # a text behind a quoted one, and the line is whole
        if not any(value.strip() for value in values):
            continue
        for value in values:
            if value.count("\n") > _LINES_IN_A_FIELD or _holds_a_row(value, len(columns), delimiter):
                held = f"a field of {value.count(chr(10)) + 1} lines"
                raise ValueError(f"{place} line {began}: {held}, with other rows in it: close its quotation mark")
        fields: dict[str, Any] = dict(zip(columns, values))
        if len(values) > len(columns):
            fields[FAULT] = f"{len(values)} fields under {len(columns)} columns: quote what holds a {delimiter!r}"
        yield began, fields


def _holds_a_row(value: str, columns: int, delimiter: str) -> bool:
    """Whether a line in a field has as many fields as a row, and a video among them."""
    rows = (line.split(delimiter) for line in value.split("\n")[1:])
    return any(len(row) == columns and any(one.strip(' "\r').lower().endswith(_VIDEOS) for one in row) for row in rows)


def without_separator_line(text: str) -> str:
    """Text without Excel's first line `sep=;`, an empty one in its place: the delimiter is found by itself."""
    found = _SEPARATOR_LINE.match(text)
    return text if found is None else "\n" * found[0].count("\n") + text[found.end() :]


def of_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def absent(value: Any) -> bool:
    """Whether a value is missing: null, and the NaN that pandas writes for it."""
    return value is None or value != value


def caption_fault(value: Any) -> str:
    """Why a JSON value is not a caption; "" if it is one, or missing."""
    return "" if absent(value) or isinstance(value, str) else f"{_written(value)}: wanted text"


def label_text(value: Any) -> str | None:
    """A label: a text or a number, also alone in a list; None if it is missing. Raises ValueError for several,
    and for what is neither."""
    if isinstance(value, list):
        given = [one for one in value if not absent(one)]
        if len(given) > 1:
            raise ValueError(f"several labels ({_written(value)})")
        value = given[0] if given else None
    if absent(value):
        return None
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"a label that is {_written(value)}: wanted text or a number")
    return str(value).strip() or None


def _written(value: Any) -> str:
    try:
        return shown(json.dumps(value))
    except RecursionError:
        return f"a {type(value).__name__}"
