"""A list of video files as a corpus: lines of a path and a caption or a label, as the action datasets have them.

    videos/abseiling/k3hhk.mp4 a man climbs down a cliff
    videos/abseiling/k3hhk.mp4 somebody abseils
    "videos/archery/with a blank.mp4", "an archer, seen from behind"
    videos/archery/x8lwe.mp4 0 -1 5

The path ends with its video extension; blanks, a tab or a comma follow. What is left is a caption, or a label where it
is numbers alone (the last one counts: VideoMAE's lists have start and length before it). Lines of the same path are
captions of one clip. Paths are relative to the list's folder, absolute, or URLs."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data import storage
from tgm_scale.data.index import Corpus
from tgm_scale.data.shard_index import VIDEO_EXTENSIONS, SampleRef

LIST_SUFFIXES = (".txt", ".csv", ".tsv")
_PIECE = 1000  # files that are shuffled as the samples of a shard are
_LINE = re.compile(
    rf"""["']?(?P<path>.+?\.(?P<kind>{"|".join(VIDEO_EXTENSIONS)}))["']?(?:[\s,]+(?P<rest>.*))?""", re.I
)
_NUMBERS = re.compile(r"-?\d+(?:[\s,]+-?\d+)*")


@dataclass
class _Entry:
    """A video of the list: its path as written, the file or URL that it is, its captions and label."""

    path: str
    place: str
    kind: str
    captions: list[str] = field(default_factory=list)
    label: int | None = None


class _FileRef(SampleRef):
    """A whole file as a sample; its key is its path in the list."""

    @property
    def name(self) -> str:
        return self.key


def is_list(spec: object) -> bool:
    """Whether `spec` names a list rather than shards."""
    return isinstance(spec, (str, os.PathLike)) and os.fspath(spec).lower().endswith(LIST_SUFFIXES)


class ListedCorpus(Corpus):
    """The files of a list, each in the place of a shard, so that all are shuffled with all: apart from one another as
    they are, reads gain nothing from being near in time. Opening reads the list and the folders' listings.

    A file that is not there is left out and counted as `missing_video`. Raises ValueError for a list that cannot be
    read, a line without a video's path, or where none of the files is there."""

    def __init__(self, path: str, name: str | None = None, cache: storage.RangeCache | None = None) -> None:
        super().__init__(name or os.path.basename(path), [], [])
        listed = _read(path)
        there = _existing([entry.place for entry in listed])
        self._missing = [Problem(e.path, "missing_video", "no such file") for e in listed if e.place not in there]
        if not there:
            raise ValueError(
                f"{path}: none of its {len(listed)} videos is there ({listed[0].place} is the first): paths are "
                "absolute, or relative to the folder of the list"
            )
        if self._missing:
            self.left_out["missing_video"] = len(self._missing)
        self._take([entry for entry in listed if entry.place in there], cache)

    @classmethod
    def of_files(cls, name: str, files: list[tuple[str, str]]) -> ListedCorpus:
        """Files that are there, each with the key that names it; without captions or labels."""
        corpus = cls.__new__(cls)
        Corpus.__init__(corpus, name, [], [])
        corpus._missing = []
        corpus._take([_Entry(key, place, place.rpartition(".")[2].lower()) for key, place in files], None)
        return corpus

    def _take(self, entries: list[_Entry], cache: storage.RangeCache | None) -> None:
        self._entries = entries
        self.shards = [entry.place for entry in entries]
        self.counts = np.ones(len(entries), dtype=np.int64)
        digest = hashlib.blake2b(digest_size=8)
        for entry in entries:
            digest.update(f"{entry.path}\n".encode())
        self.fingerprint = digest.hexdigest()
        self._reader = storage.RangeReader(cache, self.fingerprint)

    def sample(self, shard: int, row: int) -> SampleRef:
        entry = self._entries[shard]
        return _FileRef(entry.path, entry.place, {entry.kind: (0, storage.size(entry.place)), "json": (shard, 0)})

    def problems(self, shard: int) -> list[Problem]:
        """What was left out; all of it is said of the first file."""
        return self._missing if shard == 0 else []

    def read(self, ref: SampleRef, extensions: list[str] | tuple[str, ...]) -> dict[str, bytes]:
        found = {}
        for extension in extensions:
            if extension == "json":
                entry = self._entries[ref.members["json"][0]]
                found["json"] = json.dumps({"captions": entry.captions, "label": entry.label}).encode()
            elif extension in ref.members:
                found[extension] = self._reader.read(ref.shard, *ref.members[extension])
        return found


def _read(path: str) -> list[_Entry]:
    data = storage.read_small(path)
    if data is None:
        raise ValueError(f"{path}: no such list of videos")
    folder = os.path.dirname(path)
    entries: dict[str, _Entry] = {}
    for where, line in _lines(path, data):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{where}: {line[:100]!r} names no video: wanted a path that ends with one of "
                f"{', '.join(VIDEO_EXTENSIONS)}, then a caption or a label"
            )
        written, rest = match["path"], (match["rest"] or "").strip()
        place = written if storage.is_url(written) else os.path.join(folder, written)
        entry = entries.setdefault(written, _Entry(written, place, match["kind"].lower()))
        if _NUMBERS.fullmatch(rest):
            entry.label = int(re.split(r"[\s,]+", rest)[-1])
        elif rest:
            entry.captions.append(_unquoted(rest))
    if not entries:
        raise ValueError(f"{path}: an empty list; wanted lines of a path and a caption or a label")
    return list(entries.values())


def _lines(path: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Where each line stands, and what it says; blank lines and a header of CSV (`path,caption`) are passed over."""
    for number, line in enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if line.strip() and not (number == 1 and re.fullmatch(r"\s*\"?(path|video|file)\w*\"?\s*[,\t].*", line, re.I)):
            yield f"{path} line {number}", line.strip()


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1].replace('""', '"')
    return text


def _existing(places: list[str]) -> set[str]:
    """Those of the files that are there, by one listing of each folder; URLs are taken at their word."""
    found: set[str] = set()
    folders: defaultdict[str, list[str]] = defaultdict(list)
    for place in places:
        if storage.is_url(place):
            found.add(place)
        else:
            folders[os.path.dirname(place)].append(place)
    for folder, members in folders.items():
        try:
            names = set(os.listdir(folder or "."))
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.update(place for place in members if os.path.basename(place) in names)
    return found
