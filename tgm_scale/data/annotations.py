"""InternVid's annotations: which span of which video has which captions, and the captions of a shard's sample.

JSON Lines with `YoutubeID, Start_timestamp, End_timestamp, Caption, UMT_Score` and, in some subsets,
`Aesthetic_Score` (Wang et al., InternVid, 2023); keys in any case, times as HH:MM:SS.mmm. Rows with the same video and
span are captions of one clip."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data.annotation_files import files_of, lines_of
from tgm_scale.data.list_row import COLUMNS
from tgm_scale.data.shard_index import split_extension
from tgm_scale.data.text import BYTE_ORDER_MARK, cleaned, fault_of, parsed, shown
from tgm_scale.runtime import seeding

_TIME = re.compile(r"(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)")
CAPTION_EXTENSIONS = ("json", "txt")  # the members that captions are read from
_CAPTION_KEYS = ("captions", "caption", "Caption")


def captions_of(members: dict[str, bytes]) -> list[str]:
    """The captions of a sample, from its `json` ("captions", "caption" or "Caption": a text or a list) or its `txt`.

    Empty where there is none: blank texts, texts that are unfit (see `text`) and a json that is none do not count."""
    return [text for text in _texts(members) if fault_of(text) is None]


def unfit_captions(members: dict[str, bytes]) -> list[str]:
    """What is wrong with those captions of a sample that are unfit, in words."""
    return [f"{shown(text)} has {fault}" for text in _texts(members) if (fault := fault_of(text))]


def _texts(members: dict[str, bytes]) -> list[str]:
    texts: object = None
    try:
        content = parsed(members.get("json", b"null"))
    except ValueError:  # also of bytes that are no UTF-8
        content = None
    if isinstance(content, dict):
        texts = next((content[key] for key in _CAPTION_KEYS if content.get(key)), None)
    if not texts and "txt" in members:
        texts = members["txt"].decode("utf-8", errors="replace")
    listed = texts if isinstance(texts, list) else [texts]
    stripped = (text.strip().removeprefix(BYTE_ORDER_MARK).strip() for text in listed if isinstance(text, str))
    return [text for text in stripped if text]


@dataclass(frozen=True)
class Row:
    """One caption of one span; times in milliseconds. A span of 0 to 0 is the whole file."""

    video: str
    start: int
    end: int
    caption: str
    umt: float | None
    aesthetic: float | None
    label: str | None = None

    @property
    def place(self) -> int:
        """Where its clip stands in the order of all clips: a keyed shuffle that needs no memory of the others."""
        return seeding.key("clip", self.video, self.start, self.end)


def parse_time(text: object) -> int:
    """Milliseconds of "HH:MM:SS.mmm". Raises ValueError for anything else."""
    match = _TIME.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"time {text!r} is not HH:MM:SS.mmm")
    hours, minutes, seconds = match.groups()
    return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)


_AS_TIME = ", such as 00:01:02.500"


def parse_row(line: str | bytes) -> Row:
    """A line of the file. Raises ValueError saying what is wrong with it."""
    try:
        row = parsed(line)
    except ValueError as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"a JSON {type(row).__name__}, not an object")
    row = {key.lower(): value for key, value in row.items()}
    if "youtubeid" not in row:
        _by_columns(row)
    for key in ("YoutubeID", "Start_timestamp", "End_timestamp", "Caption"):
        value = row.get(key.lower())
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{key} is {json.dumps(value)}: wanted text" + _AS_TIME * key.endswith("timestamp"))
        if value is None or not value.strip():
            raise ValueError(f"no {key}")
        row[key.lower()] = cleaned(value)
    start, end = parse_time(row["start_timestamp"]), parse_time(row["end_timestamp"])
    if start >= end and not row.get("whole"):
        raise ValueError(f"the span ends ({row['end_timestamp']}) before it starts ({row['start_timestamp']})")
    umt, aesthetic = _score(row.get("umt_score")), _score(row.get("aesthetic_score"))
    return Row(row["youtubeid"], start, end, row["caption"], umt, aesthetic, row.get("label"))


def _by_columns(row: dict) -> None:
    """Set InternVid's keys from columns named file, start, end, caption, label. Times may be seconds; a row without
    any is the whole file."""
    keys = ("youtubeid", "start_timestamp", "end_timestamp", "caption", "label")
    for key, meaning in zip(keys, ("file", "start", "end", "caption", "label")):
        if (value := next((row[name] for name in COLUMNS[meaning] if row.get(name) is not None), None)) is not None:
            row[key] = value
    if isinstance(row.get("youtubeid"), str):
        row["youtubeid"] = split_extension(os.path.normpath(row["youtubeid"]))[0]
    times = [row.get("start_timestamp"), row.get("end_timestamp")]
    row["whole"] = times == [None, None]
    for key, value in zip(("start_timestamp", "end_timestamp"), times):
        try:
            row[key] = _clock(float(value or 0))
        except (TypeError, ValueError, OverflowError):  # a clock time, or a mistake that is told with it
            continue
    row["label"] = cleaned(str(row["label"])) if row.get("label") not in (None, "") else None


def _clock(seconds: float) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}.{rest % 1000:03d}"


def _score(value: object) -> float | None:
    """A finite number; what Python's JSON reads NaN and Infinity as is none."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]
    except OverflowError:  # of an integer of 400 digits
        return None


@dataclass(frozen=True)
class Filters:
    """Which rows are used; None: no bound. A row without the score that a bound asks for is not used."""

    min_umt: float | None = None
    min_aesthetic: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None

    def reason_against(self, row: Row) -> str | None:
        """Why `row` is not used, a fixed word; None where it is."""
        for name, score, bound in (
            ("umt", row.umt, self.min_umt),
            ("aesthetic", row.aesthetic, self.min_aesthetic),
        ):
            if bound is not None and score is None:
                return f"no_{name}_score"
            if bound is not None and score is not None and score < bound:
                return f"below_min_{name}"
        seconds = (row.end - row.start) / 1000
        if self.min_seconds is not None and seconds < self.min_seconds:
            return "below_min_seconds"
        if self.max_seconds is not None and seconds > self.max_seconds:
            return "above_max_seconds"
        return None


@dataclass
class ClipRow:
    """A clip to be made: a span of a video and all its captions; times in milliseconds."""

    video: str
    start: int
    end: int
    captions: list[str] = field(default_factory=list)
    umt: list[float | None] = field(default_factory=list)  # of each caption
    aesthetic: float | None = None
    label: str | None = None

    @property
    def whole(self) -> bool:
        return self.end == 0

    @property
    def cut_names(self) -> list[str]:
        """What a file of this clip alone is called by those who cut it: id and times, in the usual writings."""
        seconds = [self.start / 1000, self.end / 1000]
        spans = [
            [_clock(second) for second in seconds],
            [f"{second:.3f}" for second in seconds],
            [f"{second:g}" for second in seconds],
            [f"{round(second):06d}" for second in seconds],
            [f"{time:08d}" for time in (self.start, self.end)],
        ]
        return ["_".join([self.video, *span]) for span in spans]

    @property
    def key(self) -> str:
        """Its sample key: the video's id, all but letters, digits, -, _ and ~ percent-encoded, and the span."""
        return f"{quote(self.video, safe='').replace('.', '%2E')}_{self.start:08d}_{self.end:08d}"

    def add(self, row: Row) -> None:
        if row.caption not in self.captions:
            self.captions.append(row.caption)
            self.umt.append(row.umt)
        self.aesthetic = row.aesthetic if self.aesthetic is None else self.aesthetic
        self.label = row.label if self.label is None else self.label


class Plan:
    """Which clip goes into which shard: all clips of the annotations that pass the filters, shuffled by key and cut
    into shards. Two passes over them keep 8 bytes of every clip in memory, and the clips of the shards in work."""

    def __init__(self, path: str | Path, filters: Filters, clips_per_shard: int) -> None:
        self.files, self.filters, self.clips_per_shard = files_of(path), filters, clips_per_shard
        self.rows = 0
        self.left_out: Counter[str] = Counter()  # rows, by filter
        self.problems: list[Problem] = []  # broken rows, by line
        places = array("Q")
        digest = hashlib.blake2b(digest_size=16)
        for where, line in lines_of(self.files):
            digest.update(line)
            self.rows += 1
            try:
                row = parse_row(line)
            except ValueError as error:
                self.problems.append(Problem(where, "broken_row", str(error)))
                continue
            reason = filters.reason_against(row)
            if reason is None:
                places.append(row.place)
            else:
                self.left_out[reason] += 1
        self.digest = digest.hexdigest()
        self._places = np.unique(np.frombuffer(places, dtype=np.uint64)) if places else np.zeros(0, np.uint64)

    @property
    def clips(self) -> int:
        return len(self._places)

    @property
    def shards(self) -> int:
        return -(-self.clips // self.clips_per_shard)

    def clips_in(self, shards: Sequence[int]) -> int:
        """How many clips these shards have together."""
        return sum(min(self.clips - shard * self.clips_per_shard, self.clips_per_shard) for shard in shards)

    def clips_of(self, shards: Sequence[int]) -> list[list[ClipRow]]:
        """The clips of each of these shards, in order; a second pass over the file."""
        starts = self._places[:: self.clips_per_shard]
        chosen: dict[int, dict[tuple[int, str], ClipRow]] = {shard: {} for shard in shards}
        for _, line in lines_of(self.files):
            try:
                row = parse_row(line)
            except ValueError:
                continue
            place = row.place
            shard = int(np.searchsorted(starts, np.uint64(place), side="right")) - 1
            if shard not in chosen or self.filters.reason_against(row) is not None:
                continue
            clip = ClipRow(row.video, row.start, row.end)
            chosen[shard].setdefault((place, clip.key), clip).add(row)
        return [[clips[order] for order in sorted(clips)] for clips in chosen.values()]
