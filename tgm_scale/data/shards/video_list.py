"""Video files as a corpus: those that a list names, or those below a folder; detection of replaced files in a run."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tgm_scale.contracts import NOTICES, Problem
from tgm_scale.data.access import ranges, storage
from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, split_extension, video_extension
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.building.annotations import caption_fault, captions_of, json_fault
from tgm_scale.data.lists.reading import Entry, Listing
from tgm_scale.data.lists.text import shown
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.inventory import NAMED
from tgm_scale.data.shards.shard_index import SampleRef
from tgm_scale.data.shards.video_files import MISSING, Found, VideoFolder, walk
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import json_object, json_of
from tgm_scale.runtime.terminal import without_secrets

FILE = "files.json"  # in the run folder
SAMPLED = 1000  # files of a list: if a hundredth of them was replaced, none of these was once in 20,000 times
_GONE = -1  # size of a missing video
Marks = dict[str, list[int]]  # for each file by its name: bytes, modification time in nanoseconds
CAPTIONS = "captions.json"  # {NAME: a caption, or a list of them} for the videos in its folder


class VideoListCorpus(Corpus):
    """Corpus of the files of a list, each in the role of a shard, so that all are shuffled with all: for separate
    files, reads gain nothing from locality. Opening reads the list and the folders' listings.

    root: base of relative paths (default: the folder of the list). A file that is missing or ambiguous is left out
    and named. Raises ValueError where none of the files exists."""

    def __init__(
        self,
        listing: Listing,
        name: str | None = None,
        cache: DiskCache | None = None,
        root: str | None = None,
        patience: float | None = None,
    ) -> None:
        named = os.path.dirname(os.path.abspath(listing.path)) if listing.of_folder else listing.path.rstrip("/")
        super().__init__(name or os.path.basename(named), [], [], patience=patience)
        self.listing, self.origin = listing, listing.path
        folder = VideoFolder(root if root is not None else os.path.dirname(listing.path))
        found = folder.find([entry.path for entry in listing.entries])
        where = {entry.path: listing.where(entry) for entry in listing.entries if entry.path not in found.places}
        unfound = [Problem(of.key, of.reason, f"{where[of.key]}{of.detail}") for of in found.problems]
        self._problems = [*listing.problems, *unfound]
        count = len(listing.entries)
        if not found.places:
            if root is not None and not storage.is_url(root) and not os.path.isdir(root):
                raise ValueError(
                    f"data.root={root}: no such folder{like(root)}, where the videos of {listing.path} are looked for"
                )
            lost = [problem for problem in listing.problems if problem.reason not in NOTICES]
            raise ValueError(
                f"{listing.path}: none of its {count} videos can be used ({_first(unfound)}): paths are absolute, or "
                "relative to data.root (default: the folder of the list)"
                + (f"; rows left out before, {len(lost)}: {_first(lost)}" if lost else "")
            )
        if found.by_name:
            self.listing = replace(listing, layout=f"{listing.layout}; {_elsewhere(found, count)}")
        self.left_out = Counter(problem.reason for problem in self._problems)
        self.lost = sum(count for reason, count in self.left_out.items() if reason not in NOTICES)
        entries = [entry for entry in listing.entries if entry.path in found.places]
        self._use(entries, [found.places[entry.path] for entry in entries])
        self._reader = ranges.RangeReader(cache, self.fingerprint, patience)

    def _use(self, entries: list[Entry], places: list[str]) -> None:
        self._entries, self.shards = entries, places
        self.first_names = [entry.path for entry in entries]
        self.counts = np.ones(len(entries), dtype=np.int64)
        digest, content = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
        for entry in entries:
            digest.update(f"{entry.path}\n".encode())
            content.update(json.dumps([entry.path, entry.captions, entry.label]).encode())
        self.fingerprint, self.content = digest.hexdigest(), content.hexdigest()

    def part(self, names: Container[str], what: str) -> VideoListCorpus:
        """Return a copy with only the samples of these names. what: their description."""
        found = copy.copy(self)
        found.listing = replace(self.listing, layout=f"{self.listing.layout}; {what}")
        kept = [at for at, entry in enumerate(self._entries) if self.prefix + entry.path in names]
        found._use([self._entries[at] for at in kept], [self.shards[at] for at in kept])
        return found

    @property
    def labels(self) -> dict[str, str]:
        """Label of each file that has one, by the sample's name."""
        return {self.prefix + entry.path: entry.label for entry in self._entries if entry.label is not None}

    @property
    def groups(self) -> dict[str, str]:
        """Group of each file that has one, by the sample's name."""
        return {self.prefix + entry.path: entry.group for entry in self._entries if entry.group is not None}

    @property
    def uncaptioned(self) -> list[str]:
        """Names of the samples without a caption."""
        return [self.prefix + entry.path for entry in self._entries if not entry.captions]

    def where(self, shard: int) -> str:
        """Return the position in the list that names the file, with a colon; "" where there is no list."""
        return self.listing.where(self._entries[shard])

    def sample(self, shard: int, row: int) -> SampleRef:
        entry, place = self._entries[shard], self.shards[shard]
        try:
            size, tag = storage.size_and_tag(place, self.patience)
            self._reader.sighted(place, size, tag)
        except FileNotFoundError:
            if not storage.is_url(place):  # it existed when the list was opened: a disk may have failed
                raise
            size = _GONE
        members = {video_extension(place): (0, size), "json": (shard, 0)}
        line = self.where(shard).removesuffix(": ")
        return SampleRef(entry.path, place, members, entry.path, self.prefix, line=line)

    def all_problems(self) -> Iterator[Problem]:
        return (Problem(self.prefix + problem.key, problem.reason, problem.detail) for problem in self._problems)

    def problems(self, shard: int) -> list[Problem]:
        """Return what was left out; all of it is reported with the first file."""
        return self._problems if shard == 0 else []

    def read(self, ref: SampleRef, extensions: list[str] | tuple[str, ...]) -> dict[str, bytes]:
        found = {}
        for extension in extensions:
            if extension == "json":
                entry = self._entries[ref.members["json"][0]]
                group = {} if entry.group is None else {"group": entry.group}
                found["json"] = json.dumps({"captions": entry.captions, "label": entry.label, **group}).encode()
            elif extension in ref.members:
                found[extension] = self._video(ref, *ref.members[extension])
        return found

    def _video(self, ref: SampleRef, start: int, size: int) -> bytes:
        """Read a video. Raises DamagedMember where its server, which is not queried when the list is opened, does
        not have it."""
        try:
            if size != _GONE:
                return self._reader.read(ref.shard, start, size)
        except FileNotFoundError:
            if not storage.is_url(ref.shard):
                raise
        raise DamagedMember(Problem(ref.name, MISSING, f"{without_secrets(ref.shard)}: its server has no such file"))


def _first(problems: list[Problem]) -> str:
    key, reason, detail = problems[0].key, problems[0].reason, problems[0].detail
    return f"{key} is the first: {reason}, {detail}"


def _elsewhere(found: Found, count: int) -> str:
    first = found.by_name[0]
    return f"{len(found.by_name):,} of {count:,} paths found by name alone, such as {first} at {found.places[first]}"


def folder_listing(root: str) -> Listing | None:
    """Return the videos below a folder as a list, or None where it holds no video. Captions are those of NAME.txt
    or NAME.json next to NAME.mp4, else of NAME in the folder's captions.json; labels are the folders of the videos."""
    entries, problems = [], list[Problem]()
    for folder, names in walk(root, problems):
        stems = set(names)
        of_folder = _captions_of_folder(root, folder, stems, problems)
        label = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in names:
            stem, extension = split_extension(name)
            if extension:
                sidecars = {end: _read(folder, f"{stem}.{end}") for end in ("json", "txt") if f"{stem}.{end}" in stems}
                path = os.path.join(os.path.relpath(folder, root), name) if folder != root else name
                if not path.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in path):
                    problems.append(Problem(path, "not_a_video", "its name is no UTF-8: rename it"))
                    continue
                said = of_folder.get(stem) or of_folder.get(name) or {}
                captions = captions_of(sidecars) or captions_of(said)
                if not captions and (fault := caption_fault(sidecars) or caption_fault(said)):
                    problems.append(Problem(path, "bad_caption", fault[1]))
                entries.append(Entry(path, captions, None if label == "." else label))
    if not entries:
        return None
    return Listing(
        os.path.join(root, ""),
        entries,
        f"videos of a folder; captions: NAME.txt or NAME.json beside them, or {CAPTIONS}",
        problems,
    )


def _captions_of_folder(
    root: str, folder: str, names: set[str], problems: list[Problem]
) -> dict[str, dict[str, bytes]]:
    """Return, by a video's name with or without its extension, the input of `captions_of` from a captions.json,
    unless that is the caption of a video called captions. `problems` collects a file that is not a JSON object, and
    useless entries."""
    if CAPTIONS not in names or any(f"captions.{extension}" in names for extension in VIDEO_EXTENSIONS):
        return {}
    data = _read(folder, CAPTIONS)
    fault = json_fault({"json": data})
    content = {} if fault else json_of(data)
    if fault := fault or _useless(content, names):
        problems.append(Problem(os.path.relpath(os.path.join(folder, CAPTIONS), root), "bad_caption", fault))
    return {name: {"json": json.dumps({"captions": captions}).encode()} for name, captions in content.items()}


def _useless(content: dict[str, Any], names: Iterable[str]) -> str:
    """Return which entries of a captions.json name no video of its folder, and which are not text."""
    videos = {part for name in names if split_extension(name)[1] for part in (name, split_extension(name)[0])}
    texts = [value if isinstance(value, list) else [value] for value in content.values()]
    no_text = {name for name, of in zip(content, texts) if not all(isinstance(text, str) for text in of)}
    found = {"name no video beside it": content.keys() - videos, "are no text, or list of texts": no_text & videos}
    return "; ".join(
        f"{len(which)} of its {len(content)} entries {what}: {', '.join(map(shown, sorted(which)[:NAMED]))}"
        for what, which in found.items()
        if which
    )


def _read(folder: str, name: str) -> bytes:
    return storage.read_small(os.path.join(folder, name)) or b""


def replaced(folder: Path, opened: Sequence[Corpus]) -> list[str]:
    """Return descriptions of the files of lists that changed since the run's first start, which records in
    FOLDER/files.json bytes and modification time of files spread over each list, at the cost of a stat each. A
    replacement of the whole is detected, a single file among millions is not."""
    file = folder / FILE
    try:
        known = json_object(file) if file.is_file() else {}
    except ValueError:  # it is rewritten
        known = {}
    lists = [(n, corpus) for n, corpus in enumerate(opened) if isinstance(corpus, VideoListCorpus)]
    now = {f"{n} {corpus.name}": _marks(corpus) for n, corpus in lists}
    if now and not known:
        storage.write_atomically(file, json.dumps(now).encode())
    return [line for name, marks in now.items() if (line := _compared(name, marks, known.get(name)))]


def _marks(corpus: VideoListCorpus) -> Marks:
    found = {}
    for at in sorted({len(corpus) * k // SAMPLED for k in range(SAMPLED)}):
        if storage.is_url(corpus.shards[at]):
            continue
        try:
            stat = os.stat(corpus.shards[at])
        except OSError:  # reading it stops the run
            continue
        found[corpus.first_names[at]] = [stat.st_size, stat.st_mtime_ns]
    return found


def _compared(name: str, now: Marks, before: object) -> str:
    if not isinstance(before, dict):
        return ""
    others = [file for file, mark in now.items() if before.get(file, mark) != mark]
    if not others:
        return ""
    names = ", ".join(others[:NAMED]) + ", ..." * (len(others) > NAMED)
    return (
        f"{name.partition(' ')[2]}: {len(others):,} of {len(now):,} files that were looked at have another size or "
        f"time than when the run began ({names}): it continues with them as they are now"
    )
