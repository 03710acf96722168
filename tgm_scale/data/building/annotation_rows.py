"""Annotation rows, with InternVid's keys or the columns of a list of videos."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tgm_scale.data.access.addresses import split_extension
from tgm_scale.data.lists.row import COLUMNS, FAULT, absent, caption_fault, label_text, of_list
from tgm_scale.data.lists.text import cleaned
from tgm_scale.data.video.frame_times import clock
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of

INTERNVID = ("YoutubeID", "Start_timestamp", "End_timestamp", "Caption")
SCORES = ("umt_score", "aesthetic_score")
_TIME = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
_AS_TIME = ", such as 00:01:02.500"
_LONGEST = 1e7  # seconds, the maximum of a time column: four months, longer than any video


@dataclass(frozen=True)
class Row:
    """Annotation of one span; times in milliseconds. A span of 0 to 0 is the whole file."""

    video: str
    start: int
    end: int
    captions: tuple[str, ...]  # empty where there is a label
    umt: float | None
    aesthetic: float | None
    label: str | None = None
    file: str = ""  # the video with its extension, where the row gives one

    @property
    def caption(self) -> str:
        """First of its captions, "" if there is none."""
        return self.captions[0] if self.captions else ""

    @property
    def whole(self) -> bool:
        return self.end == 0

    @property
    def place(self) -> int:
        """Position of its clip in the order of all clips: a keyed shuffle that needs no memory of the others."""
        return seeding.key("clip", self.video, self.start, self.end)


def parse_time(text: object) -> int:
    """Return the milliseconds of "HH:MM:SS.mmm". Raises ValueError for anything else."""
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"time {text!r} is not HH:MM:SS.mmm")
    hours, minutes, seconds = match.groups()
    return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)


def parse_row(line: str | bytes) -> Row:
    """Parse a line of the file. Raises ValueError describing what is wrong with it."""
    try:
        row = json_of(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    if fault := row.get(FAULT):
        raise ValueError(str(fault))
    row = {key.lower(): value for key, value in row.items()}
    columns = "youtubeid" not in row
    file = _by_columns(row) if columns else ""
    for key, column in zip(INTERNVID, ("file", "start", "end")):
        row[key.lower()] = _text(column if columns else key, row.get(key.lower()))
    label = label_text(row.get("label"))
    captions = tuple(_captions(row.get("caption"), several=columns))
    if not captions and not (columns and label):
        raise ValueError("no Caption" + " and no label" * columns)
    start, end = parse_time(row["start_timestamp"]), parse_time(row["end_timestamp"])
    if start >= end and not row.get("whole"):
        raise ValueError(f"the span ends ({row['end_timestamp']}) before it starts ({row['start_timestamp']})")
    umt, aesthetic = (_score(row.get(key)) for key in SCORES)
    return Row(row["youtubeid"], start, end, captions, umt, aesthetic, cleaned(label) if label else None, file)


def _text(key: str, value: Any) -> str:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{key} is {json.dumps(value)}: wanted text" + _AS_TIME * (key not in ("file", "YoutubeID")))
    if value is None or not (text := cleaned(value)):
        raise ValueError(f"no {key}")
    return text


def _captions(value: Any, several: bool) -> Iterator[str]:
    for caption in of_list(value) if several else [value]:
        if fault := caption_fault(caption):
            raise ValueError(f"Caption is {fault}")
        if caption and isinstance(caption, str) and (text := cleaned(caption)):
            yield text


def _by_columns(row: dict) -> str:
    """Set InternVid's keys from columns named file, start, end, caption, label. Times may be seconds; a row without
    any means the whole file. Return the file, where its name has an extension."""
    keys = ("youtubeid", "start_timestamp", "end_timestamp", "caption", "label")
    for key, meaning in zip(keys, ("file", "start", "end", "caption", "label")):
        values = (row[name] for name in COLUMNS[meaning] if not absent(row.get(name)) and row[name] != "")
        row[key] = next(values, row.get(key))
    file = ""
    if type(row["youtubeid"]) is int:
        row["youtubeid"] = str(row["youtubeid"])
    if isinstance(name := row.get("youtubeid"), str) and name.strip() and "://" not in name:
        file = os.path.normpath(name.strip())
        row["youtubeid"], extension = split_extension(file)
        file = file if extension else ""
    times: list[Any] = [None if absent(row[key]) or row[key] == "" else row[key] for key in keys[1:3]]
    row["whole"] = times == [None, None]
    for key, value in zip(keys[1:3], times):
        if value is None and (key == "start_timestamp" or row["whole"]):
            value = 0
        try:
            seconds = float(value)
        except (TypeError, ValueError, OverflowError):  # a clock time, or an error that is reported when it is parsed
            continue
        row[key] = clock(round(seconds * 1000)) if 0 <= seconds < _LONGEST else f"{seconds} s"
    return file


def _score(value: object) -> float | None:
    """Return a finite number; None for anything else, including NaN and Infinity."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]
    except OverflowError:  # an integer of 400 digits
        return None
