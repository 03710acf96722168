"""Rows of lists, independent of the layout."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS
from tgm_scale.data.lists.text import shown

_LINES_IN_A_FIELD = 50  # more lines mean an unclosed quotation mark
_VIDEOS = tuple(f".{extension}" for extension in VIDEO_EXTENSIONS)
FAULT = "\0fault"  # the key that holds why a row cannot be used; no column has this name
LOOSE_MARK = 'text behind a quoted field: close it last, and write each mark within a quoted text twice ("")'
_LONG_NAME = 9  # letters; few words of a caption have as many

COLUMNS = {  # accepted names of each column
    "file": ("file", "path", "video", "filename", "file_name", "file_path", "filepath", "video_path", "video_name",
             "clip", "video_id"),
    "caption": ("caption", "captions", "text", "sentence", "description"),
    "label": ("label", "class", "category", "action", "class_name"),
    "group": ("group",),
    "split": ("split", "subset"),
    "start": ("start", "start_time", "time_start", "start_seconds", "start_timestamp"),
    "end": ("end", "end_time", "time_end", "end_seconds", "end_timestamp"),
}  # fmt: skip


_FILES = (*COLUMNS["file"], "videoid", "youtubeid", "youtube_id", "narration_id", "vid_name", "id")  # as they are read
_LINE_END = re.compile(r"\r\n?|\n")
_SEPARATOR_LINE = re.compile(r"\s*\"?sep=[^\w\n]?\"?[,;|\t]*\r?\n", re.I)


@dataclass
class Row:
    """Row of a list. `single`: its label may not be several in one field. `fault`: why it cannot be used. Captions
    and the label are unprocessed: `caption_fault` and `label_text` check them."""

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


Rows = tuple[str, Iterable[Row]]  # a description of the layout, and the rows


def header_of(first: str, known: set[str], path: str) -> tuple[list[str], str] | None:
    """Return the columns named by a first line, and their delimiter; None where none of them is `known`. Raises
    ValueError for two columns of one name."""
    if len(first) > csv.field_size_limit():
        return None
    for delimiter in sorted(",\t;|", key=lambda mark: -first.count(mark)):
        columns = [name.strip().strip("\"'").lower() for name in next(_read([first], delimiter), [])]
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
    """Yield, for each nonblank row of a CSV, the line where it begins and its fields by column, or FAULT.

    first: number of the first line. Blanks before a quotation mark are ignored. Raises ValueError, with `place`,
    for an unclosed mark: its field would swallow the rows up to the next mark, or to the end."""
    held: list[str] = []  # the lines of the current row

    def kept() -> Iterator[str]:
        for line in lines:
            held.append(line)
            yield line

    stream = kept()
    reader = csv.reader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
    while True:
        first += len(held)
        held.clear()
        fault = ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            behind = "expected after" in str(error) and len(held) == 1  # text after a closing quotation mark
            found = _leniently(held, stream, delimiter) if behind else None
            if found is None:
                remedy = "close its quotation marks, with nothing behind them"
                raise ValueError(f"{place} line {first}: no CSV ({error}): {remedy}") from None
            values = found
            fault = loose_mark(held, delimiter)
        if not any(value.strip() for value in values):
            continue
        fault = _swallowed(values, columns, delimiter, f"{place} line {first}") or fault
        if len(values) > len(columns):
            fault = f"{len(values)} fields under {len(columns)} columns: quote what holds a {delimiter!r}"
        yield first, dict(zip(columns, values)) | ({FAULT: fault} if fault else {})


def _leniently(held: list[str], stream: Iterator[str], delimiter: str) -> list[str] | None:
    """Return the fields of the row that begins with the lines held, reading further lines of the stream where a
    field continues; None where it has no end."""
    try:
        while len(rows := list(_read([*held, "."], delimiter))) == 1:  # the next line would be a part of it
            if len(held) > _LINES_IN_A_FIELD or next(stream, None) is None:
                return None
    except csv.Error:  # longer than a field may be
        return None
    return rows[0]


def loose_mark(lines: list[str], delimiter: str) -> str:
    """Return LOOSE_MARK where more than blanks follow a quoted field of these lines, which would otherwise go
    unnoticed."""
    blanks = rf"[^\S\r\n{re.escape(delimiter)}]+"
    ended = [re.sub(rf'"{blanks}(?=[{re.escape(delimiter)}\r\n]|$)', '"', line) for line in lines]
    try:
        list(csv.reader(ended, delimiter=delimiter, strict=True, skipinitialspace=True))
    except csv.Error as error:
        return LOOSE_MARK if "expected after" in str(error) else ""  # a mark within an unquoted field hides nothing
    return ""


def _read(lines: list[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _swallowed(values: list[str], columns: list[str], delimiter: str, where: str) -> str:
    """Return why fields of several lines may hold other rows; "" where they are texts. Raises ValueError where one
    certainly does: by a name with a video extension, or because it is too long to be a text."""
    fault = ""
    # Most rows have no such field: this check takes 2.9 us a row in place of 4.1 (2026-11-28)
    if not any("\n" in value or "\r" in value for value in values):
        return fault
    file = next((columns.index(name) for name in _FILES if name in columns), 0)
    own = _LINE_END.split(values[file])[0] if file < len(values) else ""
    for at, value in enumerate(values):
        if len(lines := _LINE_END.split(value)) == 1:
            continue
        said, remedy = f"a field of {len(lines)} lines", "close its quotation mark, or put its text on one line"
        first, *rows = ([one.strip(' "') for one in line.split(delimiter)] for line in lines)
        wanted = min(2, len(columns))
        if any(_is_video(row, file, wanted) for row in rows) or (at < file and _is_video(first, file - at, 2)):
            raise ValueError(f"{where}: {said}, with other rows in it: {remedy}")
        if len(lines) > _LINES_IN_A_FIELD:
            raise ValueError(
                f"{where}: {said}, wanted {_LINES_IN_A_FIELD} at most: close its quotation mark, or leave the row out"
            )
        # as many fields as the header has; in the last line as many as there are up to the mark that closes this field
        counts = {len(columns), at + 1} - {1}
        if any(len(row) in counts and file < len(row) and _alike(row[file], own) for row in rows):
            fault = f"{said}, with what may be other rows in it: {remedy}"
    return fault


def _is_video(row: list[str], file: int, fields: int) -> bool:
    return len(row) >= fields and file < len(row) and row[file].lower().endswith(_VIDEOS)


def _alike(name: str, own: str) -> bool:
    """Return whether a text may be a file name of the same list as `own`, which has no extension: of the same form,
    as `v001` and `v12`; one word with a punctuation mark or digit, as `own`; or one long word of the same length,
    as YouTube's of 11."""
    if not name or own.lower().endswith(_VIDEOS):
        return False
    forms = [re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "0", text)) for text in (name, own)]
    if forms[0] == forms[1] and ("0" in forms[0] or len(name) == len(own)):
        return True
    if len(name.split()) > 1 or len(own.split()) > 1:
        return False
    return all(re.search(r"[\d/_.-]", text) for text in (name, own)) or len(name) == len(own) >= _LONG_NAME


def without_separator_line(text: str) -> str:
    """Return the text with Excel's first line `sep=;` replaced by an empty one: the delimiter is detected anyway."""
    found = _SEPARATOR_LINE.match(text)
    return text if found is None else "\n" * found[0].count("\n") + text[found.end() :]


def of_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def absent(value: Any) -> bool:
    """Return whether a value is missing: null, or the NaN that pandas writes for it."""
    return value is None or value != value


def caption_fault(value: Any) -> str:
    """Return why a JSON value is not a caption; "" if it is one, or missing."""
    return "" if absent(value) or isinstance(value, str) else f"{_written(value)}: wanted text"


def place_fault(row: Row) -> str:
    """Return what is wrong with a row's file, group or split; "" if nothing is."""
    if not row.path:
        return "no file"
    for what, text in (("file's name", row.path), ("group", row.group), ("split", row.split)):
        if text and len(_LINE_END.split(text)) > 1:
            return f"a {what} of several lines ({shown(text)}): in a CSV, is a quotation mark open?"
    return ""


def label_text(value: Any) -> str | None:
    """Return a label: a text or a number, also as the only item of a list; None if it is missing. Raises ValueError
    for several, and for any other type."""
    if isinstance(value, list):
        given = [one for one in value if not absent(one)]
        if len(given) > 1:
            raise ValueError(f"several labels ({_written(value)})")
        value = given[0] if given else None
    if absent(value):
        return None
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"a label that is {_written(value)}: wanted text or a number")
    text = str(value).strip()
    if len(_LINE_END.split(text)) > 1:
        raise ValueError(f"a label of several lines ({_written(value)}; in a CSV, is a quotation mark open?)")
    return text or None


def _written(value: Any) -> str:
    try:
        return shown(json.dumps(value))
    except RecursionError:
        return f"a {type(value).__name__}"
