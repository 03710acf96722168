"""InternVid's annotations: the captions of each span of each video, and the captions of a sample in a shard.

JSON Lines with `YoutubeID, Start_timestamp, End_timestamp, Caption, UMT_Score` and, in some subsets,
`Aesthetic_Score` (Wang et al., InternVid, 2023); keys in any case, times as HH:MM:SS.mmm. Rows with the same video
and span are captions of one clip."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data.building.annotation_files import files_of, lines_of
from tgm_scale.data.building.annotation_rows import Row, parse_row, parse_time
from tgm_scale.data.building.key_files import GroupedLines, KeyFile, SortedKeys, distinct
from tgm_scale.data.lists.text import BYTE_ORDER_MARK, fault_of, shown
from tgm_scale.data.video.frame_times import clock
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.stand_ins import START, stand_in

__all__ = ["CAPTION_EXTENSIONS", "ClipRow", "Filters", "Plan", "Row", "caption_fault", "captions_of", "json_fault",
           "parse_row", "parse_time", "unfit_captions"]  # fmt: skip

CAPTION_EXTENSIONS = ("json", "txt")  # the members that captions are read from
_CAPTION_KEYS = ("captions", "caption", "Caption")
_KINDS = {dict: "an object", bool: "true"}  # of JSON
CLIPS_AT_ONCE = 20_000  # held in memory, some 20 MB; a larger shard is held whole
_UNUSED = (1 << 64) - 1  # marks a row that is broken or filtered out; valid places have 63 bits


def captions_of(members: dict[str, bytes]) -> list[str]:
    """Return the captions of a sample, from its `json` ("captions", "caption" or "Caption": a text or a list) or its
    `txt`.

    Empty if there is none: blank texts, unfit texts (see `text`) and an invalid json do not count."""
    return [text for text in _texts(members) if fault_of(text) is None]


def caption_fault(members: dict[str, bytes]) -> tuple[str, str] | None:
    """Return why a sample that has caption members has no captions: a reason and a description."""
    if unfit := unfit_captions(members):
        return "bad_caption", unfit[0]
    return ("broken_json", fault) if (fault := json_fault(members)) else None


def unfit_captions(members: dict[str, bytes]) -> list[str]:
    """Return what is wrong with each unfit caption of a sample."""
    plain, texts = members.get("txt", b""), _texts(members)
    other = [stand_in(plain[:START])]
    if not texts:
        other += [_other_encoding(plain), _nested(members)]
    unfit = [f"{shown(text)} has {fault}" for text in texts if (fault := fault_of(text))]
    return [*filter(None, other), *unfit]


def json_fault(members: dict[str, bytes]) -> str | None:
    """Return what is wrong with a sample's json; None if it is an object, or missing."""
    try:
        content = json_of(members.get("json", b"{}"))
    except ValueError as error:
        return f"no JSON: {error}"
    return None if isinstance(content, dict) else f"a JSON {type(content).__name__}, not an object"


def _texts(members: dict[str, bytes]) -> list[str]:
    texts: object = None
    try:
        content = json_of(members.get("json", b"null"))
    except ValueError:  # also for bytes that are not UTF-8
        content = None
    if isinstance(content, dict):
        texts = next((content[key] for key in _CAPTION_KEYS if content.get(key)), None)
    if not texts and (plain := members.get("txt")) and not stand_in(plain[:START]) and not _other_encoding(plain):
        texts = plain.decode("utf-8")
    listed = texts if isinstance(texts, list) else [texts]
    stripped = (text.strip().removeprefix(BYTE_ORDER_MARK).strip() for text in listed if isinstance(text, str))
    return [text for text in stripped if text]


def _other_encoding(text: bytes) -> str:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        return f"no UTF-8 (byte {text[error.start]:#04x} at {error.start}): save it as UTF-8"
    return ""


def _nested(members: dict[str, bytes]) -> str:
    """Return what is wrong with the captions of a json if they are neither a text nor a list; else ""."""
    if "json" not in members or json_fault(members):
        return ""
    content = json_of(members["json"])
    given = ((key, content[key]) for key in _CAPTION_KEYS if content.get(key))
    kinds = ((key, _KINDS.get(type(value), "a number")) for key, value in given if not isinstance(value, str | list))
    return next((f"{key} is {kind}: wanted a text or a list of texts" for key, kind in kinds), "")


@dataclass(frozen=True)
class Filters:
    """Filters for rows; None: no bound. A row that lacks the score of a given bound is rejected."""

    min_umt: float | None = None
    min_aesthetic: float | None = None
    min_seconds: float | None = None
    max_seconds: float | None = None

    def rejection_reason(self, row: Row) -> str | None:
        """Return why `row` is rejected, as a fixed word; None if it is used."""
        for name, score, bound in (
            ("umt", row.umt, self.min_umt),
            ("aesthetic", row.aesthetic, self.min_aesthetic),
        ):
            if bound is not None and score is None:
                return f"no_{name}_score"
            if bound is not None and score is not None and score < bound:
                return f"below_min_{name}"
        return None if row.whole else self.length_rejection((row.end - row.start) / 1000)

    def length_rejection(self, seconds: float) -> str | None:
        """Return why a clip of this length is rejected. The length of a whole file is known only once it was read."""
        if self.min_seconds is not None and seconds < self.min_seconds:
            return "below_min_seconds"
        if self.max_seconds is not None and seconds > self.max_seconds:
            return "above_max_seconds"
        return None


@dataclass(slots=True)
class ClipRow:
    """Clip to be made: a span of a video and all its captions; times in milliseconds."""

    video: str
    start: int
    end: int
    captions: list[str] = field(default_factory=list)
    umt: list[float | None] = field(default_factory=list)  # of each caption
    aesthetic: float | None = None
    label: str | None = None
    other_label: str | None = None  # of a further row of the same span, where it differs
    file: str = ""  # the video with its extension, where a row gives one
    other_file: str = ""  # of a further row of the same span, where it differs

    @property
    def whole(self) -> bool:
        return self.end == 0

    @property
    def cut_names(self) -> list[str]:
        """Usual names of a pre-cut file of this clip alone: id and times in the common notations, none of which
        rounds: a name with whole seconds could be another clip's."""
        times = (self.start, self.end)
        exact = [f"{time / 1000:.3f}" for time in times]
        spans = [
            [clock(time) for time in times],
            exact,
            [seconds.rstrip("0").removesuffix(".") for seconds in exact],
            [f"{time:08d}" for time in times],
        ]
        if not any(time % 1000 for time in times):
            spans.append([f"{time // 1000:06d}" for time in times])
        return ["_".join([self.video, *span]) for span in spans]

    @property
    def key(self) -> str:
        """Sample key: the video's id, percent-encoded except for letters, digits, -, _ and ~, and the span."""
        return f"{quote(self.video, safe='').replace('.', '%2E')}_{self.start:08d}_{self.end:08d}"

    def add(self, row: Row) -> None:
        for caption in row.captions:
            if caption not in self.captions:
                self.captions.append(caption)
                self.umt.append(row.umt)
        self.aesthetic = row.aesthetic if self.aesthetic is None else self.aesthetic
        if self.label is not None and row.label not in (None, self.label):
            self.other_label = row.label
        self.label = row.label if self.label is None else self.label
        if self.file and row.file not in ("", self.file):
            self.other_file = row.file
        self.file = self.file or row.file


class Plan:
    """Assignment of clips to shards: all clips of the annotations that pass the filters, shuffled by key and cut
    into shards. Memory holds 8 bytes per shard and the clips in progress; TMPDIR holds 16 bytes per row (32 where
    its video's name includes a folder), and the output folder holds the rows of the shards in progress."""

    def __init__(self, path: str | Path, filters: Filters, clips_per_shard: int) -> None:
        self.files, self.filters, self.clips_per_shard = files_of(path), filters, clips_per_shard
        self.rows = 0
        self.left_out: Counter[str] = Counter()  # rows, by filter
        self.problems: list[Problem] = []  # broken rows, by line
        self._places, paths = KeyFile(), KeyFile()  # a place for each row
        digest = hashlib.blake2b(digest_size=16)
        for where, line in lines_of(self.files):
            digest.update(line)
            self.rows += 1
            try:
                row = parse_row(line)
            except ValueError as error:
                self.problems.append(Problem(where, "broken_row", str(error)))
                self._places.append(_UNUSED)
                continue
            reason = filters.rejection_reason(row)
            if reason is None and "/" in row.video:
                paths.append(seeding.key("path", row.video))
            elif reason is not None:
                self.left_out[reason] += 1
            self._places.append(row.place if reason is None else _UNUSED)
        self.digest = digest.hexdigest()
        self._paths = SortedKeys(distinct(paths.runs()))
        self._cut_into_shards()

    def _cut_into_shards(self) -> None:
        self.clips, starts = 0, []
        for places in distinct(run[run != _UNUSED] for run in self._places.runs()):
            starts.append(places[-self.clips % self.clips_per_shard :: self.clips_per_shard].copy())
            self.clips += len(places)
        self._starts = np.concatenate(starts) if starts else np.empty(0, np.uint64)  # the first place of each shard

    def has_path(self, video: str) -> bool:
        """Return whether a row names its video by this path, including its folder."""
        return seeding.key("path", video) in self._paths

    @property
    def shards(self) -> int:
        return -(-self.clips // self.clips_per_shard)

    def clips_in(self, shards: Sequence[int]) -> int:
        """Return the total number of clips in these shards."""
        return sum(min(self.clips - shard * self.clips_per_shard, self.clips_per_shard) for shard in shards)

    def clips_of(self, shards: Sequence[int], folder: str | Path | None = None) -> Iterator[list[ClipRow]]:
        """Yield the clips of each of these shards, in order, after a second pass over the files; `folder` holds
        their rows meanwhile. Raises ValueError where the files have changed since the plan was made."""
        together = max(1, CLIPS_AT_ONCE // self.clips_per_shard)
        groups = [shards[at : at + together] for at in range(0, len(shards), together)]
        lines = self._lines_of(groups, folder)
        for number, group in enumerate(groups):
            chosen: dict[int, dict[tuple[int, str, int, int], ClipRow]] = {shard: {} for shard in group}
            for line in lines.of_group(number):
                row = parse_row(line)
                place, span = row.place, (row.video, row.start, row.end)
                clips = chosen[int(np.searchsorted(self._starts, np.uint64(place), side="right")) - 1]
                clips.setdefault((place, *span), ClipRow(*span)).add(row)
            yield from ([clips[order] for order in sorted(clips)] for clips in chosen.values())

    def _lines_of(self, groups: Sequence[Sequence[int]], folder: str | Path | None) -> GroupedLines:
        """Return the rows of each group of shards, found by their places, so that the others are not parsed again."""
        group_of = np.full(self.shards + 1, -1)  # the last entry: for rows that come before all shards
        for number, group in enumerate(groups):
            group_of[list(group)] = number
        found, digest = GroupedLines(folder), hashlib.blake2b(digest_size=16)
        lines = lines_of(self.files)
        for places in self._places.runs():
            of_row = group_of[np.searchsorted(self._starts, places, side="right") - 1]
            of_row[places == _UNUSED] = -1
            for group, (_, line) in zip(of_row.tolist(), lines):
                digest.update(line)
                if group >= 0:
                    found.add(group, line.rstrip(b"\r\n"))
        if next(lines, None) is not None or digest.hexdigest() != self.digest:
            raise ValueError("--annotations: the files changed while they were read: start again with files at rest")
        return found
