"""InternVid's annotations: which span of which video has which captions, and the captions of a shard's sample.

JSON Lines with `YoutubeID, Start_timestamp, End_timestamp, Caption, UMT_Score` and, in some subsets,
`Aesthetic_Score` (Wang et al., InternVid, 2023); keys in any case, times as HH:MM:SS.mmm. Rows with the same video and
span are captions of one clip."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data.annotation_files import files_of, lines_of
from tgm_scale.data.annotation_rows import Row, clock, parse_row, parse_time
from tgm_scale.data.text import BYTE_ORDER_MARK, fault_of, shown
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of

__all__ = ["CAPTION_EXTENSIONS", "ClipRow", "Filters", "Plan", "Row", "captions_of", "json_fault", "parse_row",
           "parse_time", "unfit_captions"]  # fmt: skip

CAPTION_EXTENSIONS = ("json", "txt")  # the members that captions are read from
_CAPTION_KEYS = ("captions", "caption", "Caption")


def captions_of(members: dict[str, bytes]) -> list[str]:
    """The captions of a sample, from its `json` ("captions", "caption" or "Caption": a text or a list) or its `txt`.

    Empty where there is none: blank texts, texts that are unfit (see `text`) and a json that is none do not count."""
    return [text for text in _texts(members) if fault_of(text) is None]


def unfit_captions(members: dict[str, bytes]) -> list[str]:
    """What is wrong with those captions of a sample that are unfit, in words."""
    return [f"{shown(text)} has {fault}" for text in _texts(members) if (fault := fault_of(text))]


def json_fault(members: dict[str, bytes]) -> str | None:
    """What is wrong with a sample's json, in words; None where it is an object, or there is none."""
    try:
        content = json_of(members.get("json", b"{}"))
    except ValueError as error:
        return f"no JSON: {error}"
    return None if isinstance(content, dict) else f"a JSON {type(content).__name__}, not an object"


def _texts(members: dict[str, bytes]) -> list[str]:
    texts: object = None
    try:
        content = json_of(members.get("json", b"null"))
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
        return None if row.whole else self.against_seconds((row.end - row.start) / 1000)

    def against_seconds(self, seconds: float) -> str | None:
        """Why a clip of this length is not used. That of a whole file is known when it was read."""
        if self.min_seconds is not None and seconds < self.min_seconds:
            return "below_min_seconds"
        if self.max_seconds is not None and seconds > self.max_seconds:
            return "above_max_seconds"
        return None


@dataclass(slots=True)
class ClipRow:
    """A clip to be made: a span of a video and all its captions; times in milliseconds."""

    video: str
    start: int
    end: int
    captions: list[str] = field(default_factory=list)
    umt: list[float | None] = field(default_factory=list)  # of each caption
    aesthetic: float | None = None
    label: str | None = None
    other_label: str | None = None  # that a further row of the same span has
    file: str = ""  # the video with its extension, where a row says one
    other_file: str = ""  # that a further row of the same span says

    @property
    def whole(self) -> bool:
        return self.end == 0

    @property
    def cut_names(self) -> list[str]:
        """What a file of this clip alone is called by those who cut it: id and times, in the usual writings, none of
        which rounds: a file of whole seconds is that of another clip."""
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
        """Its sample key: the video's id, all but letters, digits, -, _ and ~ percent-encoded, and the span."""
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
    """Which clip goes into which shard: all clips of the annotations that pass the filters, shuffled by key and cut
    into shards. Two passes over them keep 8 bytes of every clip in memory (16 where its video's name says a folder),
    and the clips of the shards in work."""

    def __init__(self, path: str | Path, filters: Filters, clips_per_shard: int) -> None:
        self.files, self.filters, self.clips_per_shard = files_of(path), filters, clips_per_shard
        self.rows = 0
        self.left_out: Counter[str] = Counter()  # rows, by filter
        self.problems: list[Problem] = []  # broken rows, by line
        places, paths = array("Q"), array("Q")
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
                if "/" in row.video:
                    paths.append(seeding.key("path", row.video))
            else:
                self.left_out[reason] += 1
        self.digest = digest.hexdigest()
        self._places, self._paths = _distinct(places), _distinct(paths)

    def has_path(self, video: str) -> bool:
        """Whether one of the rows names its video by this path, folder and all."""
        key = np.uint64(seeding.key("path", video))
        at = int(np.searchsorted(self._paths, key))
        return at < len(self._paths) and bool(self._paths[at] == key)

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
        chosen: dict[int, dict[tuple[int, str, int, int], ClipRow]] = {shard: {} for shard in shards}
        for _, line in lines_of(self.files):
            try:
                row = parse_row(line)
            except ValueError:
                continue
            place = row.place
            shard = int(np.searchsorted(starts, np.uint64(place), side="right")) - 1
            if shard not in chosen or self.filters.reason_against(row) is not None:
                continue
            span = row.video, row.start, row.end
            chosen[shard].setdefault((place, *span), ClipRow(*span)).add(row)
        return [[clips[order] for order in sorted(clips)] for clips in chosen.values()]


def _distinct(keys: array[int]) -> np.ndarray:
    """The keys in order, each once: sorted where they are, as np.unique's table takes 60 bytes of each."""
    keys_N = np.frombuffer(keys, dtype=np.uint64)
    keys_N.sort()
    return keys_N[np.append(True, keys_N[1:] != keys_N[:-1])] if len(keys_N) else keys_N
