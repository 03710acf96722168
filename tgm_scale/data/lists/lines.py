"""Lists without a header, whose lines are a path with a video extension, then a caption or a label.

    videos/abseiling/k3hhk.mp4 a man climbs down a cliff
    "videos/archery/with a blank.mp4","an archer, seen from behind"
    videos/archery/x8lwe.mp4 5
    videos/archery/x8lwe.mp4 0 -1 5

A blank, a tab or a comma follows the path. Numbers alone are a label (after a start and a length of -1, as VideoMAE
writes them); a number in quotes is a text. More columns than that need a header, since they would be ambiguous."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator

from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS
from tgm_scale.data.lists.row import COLUMNS, Row, Rows, loose_mark
from tgm_scale.data.lists.text import lines_in

_LINE = re.compile(
    rf"""(?P<quote>["']?)(?P<path>.+?\.(?:{"|".join(VIDEO_EXTENSIONS)}))(?P=quote)(?:(?P<gap>[\s,]+)(?P<rest>.*))?""",
    re.I | re.S,
)
_NUMBERS = re.compile(r"-?\d+(?:[\s,]+-?\d+)*")
_DELIMITING_COMMA = re.compile(r",(?=\S)(?!(?<=\d,)\d{3}\b)")  # no blank after it, and not that of 1,000
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_HEADER = "give the list a header, such as file,label or file,caption"
_LONGEST_TEXT = 50  # lines of one quoted text


def is_ucf101(path: str) -> bool:
    return re.fullmatch(r"(train|test)list0\d\.txt", os.path.basename(path)) is not None


def ucf101(path: str, text: str) -> Iterator[Row]:
    """Yield the rows of UCF101's lists: test lists omit the label, train lists number it."""
    for number, line in enumerate(lines_in(text), 1):
        if line.strip():
            name = re.sub(r"\s+\d+$", "", line.strip())
            yield Row(f"{path} line {number}", name, label=name.rpartition("/")[0] or None)


def lines_of(path: str, text: str, wanted: str) -> Rows:
    """Return the layout and the rows. Raises ValueError, during iteration over the rows, for an ambiguous line."""
    layout = "lines of a path and a label" if wanted == "label" else "lines of a path and a caption (numbers: a label)"
    return layout, _rows(path, text, wanted)


def _rows(path: str, text: str, wanted: str) -> Iterator[Row]:
    for at, (number, line) in enumerate(_logical(text)):
        if at == 0 and line.lower().split()[0] in COLUMNS["file"]:
            continue  # a header such as `path label`
        where = f"{path} line {number}"
        match = _LINE.fullmatch(line)
        if match is None:
            if wanted == "caption":
                raise ValueError(
                    f"{where}: {line[:100]!r} names no video: wanted a path that ends with one of "
                    f"{', '.join(VIDEO_EXTENSIONS)}, then a caption or a label"
                )
            name, label = _bare(line, where)
            yield Row(where, name, label=label)
            continue
        row = Row(where, match["path"])
        rest = (match["rest"] or "").strip()
        if rest:
            _read_rest(row, rest, match["gap"], wanted)
        yield row


def _logical(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number and content of each nonblank line; a quoted text may continue over line breaks."""
    lines = lines_in(text)
    at = 0
    while at < len(lines):
        start, line = at, lines[at]
        at += 1
        if re.search(r'[,\t]\s*"', line):
            while line.count('"') % 2 and at < len(lines) and at - start < _LONGEST_TEXT and not _starts(lines[at]):
                line += "\n" + lines[at]
                at += 1
        if line.strip():
            yield start + 1, line.strip()


def _starts(line: str) -> bool:
    """Return whether a line looks like the next video's, so that a stray quotation mark does not swallow it."""
    match = _LINE.fullmatch(line.strip())
    return match is not None and (match["gap"] or "").strip() == ","


def _bare(line: str, where: str) -> tuple[str, str]:
    """Return the name and label of a line whose path has no extension."""
    parts = [part.strip() for part in line.split("\t")] if "\t" in line else line.split()
    if "," in line and "\t" not in line:
        raise ValueError(f"{where}: columns {line[:100]!r} without names; {_HEADER}")
    if len(parts) != 2 or not all(parts):
        raise ValueError(
            f"{where}: wanted 'path label', found {line[:100]!r}: end the path with its extension, or {_HEADER}"
        )
    return parts[0], parts[1]


def _read_rest(row: Row, rest: str, gap: str, wanted: str) -> None:
    """Set the caption or label from what follows the path. Raises ValueError where that is ambiguous."""
    if _NUMBERS.fullmatch(rest):
        numbers = re.split(r"[\s,]+", rest)
        if len(numbers) == 3 and numbers[1] == "-1" and "," not in rest:
            numbers = numbers[2:]  # start, length, label
        if len(numbers) > 1:
            raise ValueError(f"{row.where}: several numbers after the path ({rest}): a video has one label; {_HEADER}")
        row.label = numbers[0]
        return
    comma, tab = "," in gap, "\t" in gap
    if comma and rest.startswith('"'):
        fields, row.fault = _quoted(rest.replace("\n", " "))
        if row.fault:
            return
        if len(fields) > 1:
            raise ValueError(f"{row.where}: {len(fields) + 1} columns without names ({rest[:80]!r}); {_HEADER}")
        text = fields[0]
    elif (comma and _DELIMITING_COMMA.search(rest)) or (tab and "\t" in rest):
        raise ValueError(
            f"{row.where}: several columns without names ({rest[:80]!r}); {_HEADER}, and quote texts with commas"
        )
    else:
        text = rest[1:-1].replace('""', '"') if len(rest) > 1 and rest[0] == rest[-1] == '"' else rest
    if wanted == "caption":
        row.captions.append(text)
        return
    words = text.split()
    if len(words) > 1 and (words[-1].lower() in _SPLITS or words[0].lstrip("-").isdigit()):
        raise ValueError(f"{row.where}: {text[:80]!r} is several columns, or one label; {_HEADER}")
    row.label = text


def _quoted(rest: str) -> tuple[list[str], str]:
    """Return the fields, and why they cannot be used; "" if they can."""
    try:
        return next(csv.reader([rest], strict=True)), ""
    except csv.Error as error:
        if len(rest) > csv.field_size_limit():
            return [], f"no CSV ({error})"
        return next(csv.reader([rest])), loose_mark([rest], ",")
