"""The index of one shard: where each sample's members lie in its tar, so that a sample is read by range.

`NAME.index.jsonl` beside `NAME.tar`: a first line {"bytes", "mark", "samples", "problems", "blake2b"}, then one line a
sample, {"key", "members": {extension: [offset, size]}, "crc32": {extension: sum}}. Size and mark (a digest of both
ends) tie it to its tar; times of files do not, because copies and downloads change them. "blake2b" is a digest of the
lines that follow, which older indices lack; what is wrong in either is made anew from the tar.

"crc32" are the sums of the members' bytes (zlib.crc32), compared whenever a member is read. Who writes a shard has
them of what it meant to write. An index that is made of a tar has none, since only the headers are read for it (of
ten million clips the rest is terabytes); `tgm-scale shards check`, which reads all, adds them.

A corpus from elsewhere gets its indices when it is first opened: beside the tars, or in the user's cache where they
cannot be written. Of a remote shard the cache has the index with "tag", what the storage says of the file's content
(ETag, times): another tag at a later start is another file, and what is derived from the old one is dropped."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarInfo
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.access.addresses import base_name, place, split_query
from tgm_scale.data.access.names import printable
from tgm_scale.data.access.patience import Lasting
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.tars import BLOCK, BrokenTar, members_of
from tgm_scale.runtime.secrets import without_secrets

VIDEO_EXTENSIONS = ("mp4", "mkv", "avi", "mov", "webm", "m4v", "mpg", "mpeg", "flv", "wmv", "3gp", "ogv", "gif")
_VIDEOS = frozenset(VIDEO_EXTENSIONS)
# Bytes by which an index may exceed its tar: a sample's line has about 100 bytes and its names, each of which is in a
# header of 512 bytes of the tar; a tar of a few small files has the index's first line beside.
_MORE_THAN_TAR = 1 << 16
_MARK_BYTES = 1 << 14  # of the tar's end: its padding is at most 10,240 bytes, so some of the last sample is in it


def split_extension(path: str) -> tuple[str, str]:
    """Path and extension in lower case; "" where it does not end as a video does."""
    stem, dot, extension = path.rpartition(".")
    return (stem, extension.lower()) if dot and extension.lower() in VIDEO_EXTENSIONS else (path, "")


@dataclass(frozen=True)
class SampleRef:
    """Where one sample lies: its key, its shard (path or URL), and (offset, size) in bytes of each member.

    Members are named by extension: all after the first dot of the member's name, in lower case ("mp4", "tgm.npy").
    `within` is its name in its corpus, "shard-name/sample-key", and `prefix` tells it from those of other corpora.
    `sums`: zlib.crc32 of the members of which it is known."""

    key: str
    shard: str
    members: dict[str, tuple[int, int]]
    within: str
    prefix: str = ""
    sums: dict[str, int] = field(default_factory=dict)

    @property
    def video(self) -> str:
        """The extension of its video."""
        return next(extension for extension in VIDEO_EXTENSIONS if extension in self.members)

    @property
    def name(self) -> str:
        """The sample's name: no other of the run has it (see names.py)."""
        return self.prefix + self.within


def shard_name(shard: str) -> str:
    """The shard's name without its folder and .tar."""
    return base_name(shard).removesuffix(".tar")


@dataclass(frozen=True)
class Summary:
    """What a corpus needs to know of a shard before it reads from it: mark, usable samples, what was left out."""

    mark: str
    samples: Annotated[int, Field(ge=0)]
    left_out: dict[str, Annotated[int, Field(ge=0)]]  # reason -> count


class DamagedIndex(ValueError):
    """What an index file says cannot be so. It is a cache: `rebuilt` makes it anew."""


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: int = Field(ge=0)
    mark: str
    samples: int = Field(ge=0)
    problems: list[Annotated[list[str], Field(min_length=3, max_length=3)]]
    blake2b: str | None = None
    tag: str = ""


class ShardIndex:
    """The samples of one shard. Lines are parsed when asked for."""

    def __init__(
        self, shard: str, size: int, mark: str, lines: list[bytes], problems: list[Problem], tag: str = ""
    ) -> None:
        self.shard, self.size, self.mark, self.problems, self.tag = shard, size, mark, problems, tag
        self._lines = lines

    def __len__(self) -> int:
        return len(self._lines)

    def sample(self, row: int, name: str | None = None, prefix: str = "") -> SampleRef:
        """Sample `row` of the shard, which is called `name` in its corpus (default: as its file)."""
        key, members, sums = self._parsed(self._lines[row])
        return SampleRef(key, self.shard, members, f"{name or shard_name(self.shard)}/{key}", prefix, sums)

    @property
    def has_sums(self) -> bool:
        """Whether the sums of its members are known, of all samples or of those that could be read."""
        return any(_SUMS in line for line in self._lines)  # within a string of JSON it would be escaped

    def with_sums(self, sums: Mapping[int, Mapping[str, int]]) -> ShardIndex:
        """The same index with the sums of these rows' members."""
        lines = list(self._lines)
        for row, of_members in sums.items():
            key, members, _ = self._parsed(lines[row])
            lines[row] = _sample_line(key, members, of_members)
        return ShardIndex(self.shard, self.size, self.mark, lines, self.problems, self.tag)

    def has_lines_of(self, other: ShardIndex) -> bool:
        """Whether both are of the same samples at the same places, with the same sums where both have them."""
        if self.has_sums == other.has_sums or len(self) != len(other):
            return self._lines == other._lines
        return all(self._parsed(a)[:2] == self._parsed(b)[:2] for a, b in zip(self._lines, other._lines))

    def _parsed(self, line: bytes) -> tuple[str, dict[str, tuple[int, int]], dict[str, int]]:
        try:
            fields = json_of(line)
            members = {extension: (offset, size) for extension, (offset, size) in fields["members"].items()}
            for offset, size in members.values():
                if not (type(offset) is type(size) is int and size >= 0 and 0 <= offset <= self.size - size):
                    raise ValueError(f"bytes {offset} to {offset} + {size} of {self.size}")
            if not members.keys() & _VIDEOS:
                raise ValueError("no video")
            sums = fields.get("crc32", {})
            if not all(type(each) is int and 0 <= each < 1 << 32 for each in sums.values()):
                raise ValueError("crc32: wanted whole numbers below 2^32")
            return printable(fields["key"]), members, sums
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedIndex(f"{type(error).__name__}: {error}") from None

    @property
    def summary(self) -> Summary:
        return Summary(self.mark, len(self), dict(Counter(problem.reason for problem in self.problems)))

    def dump(self) -> bytes:
        """The index file's content."""
        problems = [[problem.key, problem.reason, problem.detail] for problem in self.problems]
        head = _line(
            {
                "bytes": self.size,
                "mark": self.mark,
                "samples": len(self),
                "problems": problems,
                "blake2b": _digest(self._lines),
                **({"tag": self.tag} if self.tag else {}),
            }
        )
        return b"\n".join([head, *self._lines]) + b"\n"

    @classmethod
    def parse(cls, shard: str, data: bytes) -> ShardIndex:
        """Raises DamagedIndex where `data` is no whole index."""
        lines = data.splitlines()
        try:
            head = _Head.model_validate(json_of(lines[0] if lines else b""))
        except ValueError as error:
            raise DamagedIndex(f"its first line: {error}") from None
        if head.samples != len(lines) - 1:
            raise DamagedIndex(f"{len(lines) - 1} lines of {head.samples}")
        if head.blake2b not in (None, _digest(lines[1:])):
            raise DamagedIndex("its lines are not those that were written")
        return cls(shard, head.bytes, head.mark, lines[1:], [Problem(*each) for each in head.problems], head.tag)

    @classmethod
    def scan(cls, shard: str, sums: Mapping[str, Mapping[str, int]] | None = None) -> ShardIndex:
        """Read the headers of the tar. sums: of each sample's members, by its key, where they are known. What cannot
        be used is a problem, never an error:

        `no_video` (a failed download leaves its captions), `key_with_dot`, `shard_cut` (the tar ends too early; what
        is complete before the cut is used), `shard_unreadable` (no tar at all, or a packed one), `duplicate_member`
        (the first is used)."""
        found = _Members()
        with storage.open_seekable(shard) as file:
            size, mark = _identity(file)
            fault = found.read(file, size)
        problems = found.problems
        if fault:
            reason = "shard_cut" if found.members or found.cut_keys else "shard_unreadable"
            problems.append(Problem(shard_name(shard), reason, fault))
        lines = []
        for key, members in found.members.items():
            if key in found.cut_keys:
                problems.append(Problem(key, "shard_cut", "the shard ends inside this sample"))
            elif any(extension in members for extension in VIDEO_EXTENSIONS):
                lines.append(_sample_line(key, members, (sums or {}).get(key, {})))
            else:
                problems += _without_video(key, list(members))
        return cls(shard, size, mark, lines, problems)


class _Members:
    """The members of a tar, gathered by the keys of their samples."""

    def __init__(self) -> None:
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        self.problems: list[Problem] = []
        self.cut_keys: set[str] = set()

    def read(self, file: BinaryIO, size: int) -> str:
        """Go through the headers. Returns why the tar does not end as a tar should, "" where it does."""
        try:
            for member in members_of(file):
                self._add(member, size)
        except BrokenTar as error:
            return str(error)
        return ""

    def _add(self, member: TarInfo, size: int) -> None:
        key, extension = split_name(printable(member.name))
        if not (key and extension) or not member.isreg() or member.issparse():
            return
        if member.offset_data + member.size > size:
            self.cut_keys.add(key)
        elif extension in self.members.setdefault(key, {}):
            self.problems.append(Problem(key, "duplicate_member", f"a second {extension!r}"))
        else:
            self.members[key][extension] = (member.offset_data, member.size)


def _without_video(key: str, extensions: list[str]) -> list[Problem]:
    """Why a sample has no video. A dot in its key, as in id_00:00:01.250.mp4, ends the key early: then each name that
    ends as a video does was meant to be a sample."""
    dotted = [name for name in extensions if name.rpartition(".")[2] in VIDEO_EXTENSIONS]
    if not dotted:
        return [Problem(key, "no_video", "has " + ", ".join(sorted(extensions)))]
    return [
        Problem(
            f"{key}.{name}",
            "key_with_dot",
            f"a key ends at the first dot of a name, here after {key!r}: rename the members, or make the shards anew",
        )
        for name in dotted
    ]


def _digest(lines: list[bytes]) -> str:
    return hashlib.blake2b(b"\n".join(lines), digest_size=16).hexdigest()


_SUMS = b',"crc32":{'


def _sample_line(key: str, members: Mapping[str, tuple[int, int]], sums: Mapping[str, int]) -> bytes:
    return _line({"key": key, "members": members, **({"crc32": sums} if sums else {})})


def _line(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=True, separators=(",", ":")).encode()


def _identity(file: BinaryIO) -> tuple[int, str]:
    """Size and mark of a tar; the file is left at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MARK_BYTES))
    digest = hashlib.blake2b(file.read(_MARK_BYTES), digest_size=8)
    file.seek(0)
    digest.update(file.read(BLOCK))
    file.seek(0)
    return size, digest.hexdigest()


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member: the extension is all after the first dot of the last part of the name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def load(shard: str, patience: float | None = None) -> ShardIndex:
    """The shard's index, built and kept where it is missing or stale.

    Safe to call from many processes at once: the file appears whole."""
    beside, cached = index_path(shard), _cache_path(shard)
    if storage.is_url(shard):
        return _of_remote(shard, beside, cached, patience)
    size, fresh, stale = storage.size(shard), list[ShardIndex](), False
    for path in (beside, cached):
        index = _whole(shard, path, size, patience)
        if index is None:
            continue
        if not _is_of(index, shard, patience):
            stale = True
            continue
        if index.has_sums:
            return index
        fresh.append(index)
    if fresh:
        return fresh[0]
    if stale:
        sys.stderr.write(
            f"{shard}: its size or its ends are not those of the file that was indexed: it was changed or replaced, "
            "and is another shard to every run; its index is made anew, without sums of its members\n"
        )
    return _made(shard, beside, cached, patience)


def _of_remote(shard: str, beside: str, cached: str, patience: float | None) -> ShardIndex:
    """The kept index first: it knows the tag, and is near."""
    tag, size = storage.tag(shard, patience), storage.size(shard, patience)
    kept = _fresh(shard, cached, size, patience)
    if kept is not None and kept.tag == tag:
        return kept
    replaced = kept is not None and bool(kept.tag) and bool(tag)
    if replaced:
        sys.stderr.write(
            f"{without_secrets(shard)}: its ETag or time is another than when it was indexed: it was replaced; its "
            "index is made anew, and bytes kept of it are not used\n"
        )
    index = _fresh(shard, beside, size, patience)
    if index is None or (replaced and kept is not None and index.has_lines_of(kept)):  # beside it lies the old one
        return _made(shard, beside, cached, patience, tag)
    index.tag = tag
    if tag:
        with suppress(OSError):  # a copy: without it the next start does not see a replacement
            storage.write_atomically(Path(cached), index.dump())
    return index


def rebuilt(shard: str, why: DamagedIndex) -> ShardIndex:
    """An index whose file turned out damaged when it was used, made anew from the tar."""
    _say(index_path(shard), why)
    return _made(shard, index_path(shard), _cache_path(shard), tag=storage.tag(shard))


def _made(shard: str, beside: str, cached: str, patience: float | None = None, tag: str = "") -> ShardIndex:
    index = storage.retrying(lambda: ShardIndex.scan(shard), shard, patience)
    index.tag = tag  # asked for before: a shard that is replaced meanwhile has another one
    if len(index):  # beside what is no shard nothing is left
        keep(index.dump(), beside, cached)
    return index


def _say(path: str, why: Exception) -> None:
    said = printable(" ".join(str(why).split()))
    sys.stderr.write(
        f"{without_secrets(path)}: damaged ({said[:200]}): made anew from the shard, without sums of its members\n"
    )


def keep(data: bytes, beside: str, cached: str) -> None:
    """Write a derived file beside the shards, or in the user's cache where they are remote or read-only.

    Raises OSError with the remedy where neither can be written."""
    if not storage.is_url(beside):
        try:
            return storage.write_atomically(Path(beside), data)
        except OSError:  # read-only, or another user's
            pass
    try:
        return storage.write_atomically(Path(cached), data)
    except OSError as error:
        raise OSError(
            f"neither {beside} nor {cached} can be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error


def index_path(shard: str) -> str:
    """Where the index lies beside its shard."""
    path, query = split_query(shard)
    return path.removesuffix(".tar") + ".index.jsonl" + query


def cache_folder() -> Path:
    """Where indices and catalogues of read-only and remote corpora are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgm_scale" / "index"


def _cache_path(shard: str) -> str:
    where = place(shard) if storage.is_url(shard) else os.path.abspath(shard)
    return str(cache_folder() / f"{seeding.key(where):016x}-{shard_name(shard)}.index.jsonl")


def _fresh(shard: str, path: str, size: int, patience: float | None) -> ShardIndex | None:
    """The index at `path` if it is there, whole, and of this tar, which has `size` bytes."""
    index = _whole(shard, path, size, patience)
    return index if index is not None and _is_of(index, shard, patience) else None


def _whole(shard: str, path: str, size: int, patience: float | None) -> ShardIndex | None:
    """The index at `path`, of whichever tar, if it is there and not damaged."""
    try:
        data = storage.read_small(path, patience, size + _MORE_THAN_TAR)
        return None if data is None else ShardIndex.parse(shard, data)
    except (DamagedIndex, Lasting) as error:  # Lasting: it has no end, or is no answer
        _say(path, error)
        return None


def _is_of(index: ShardIndex, shard: str, patience: float | None) -> bool:
    def identity() -> tuple[int, str]:
        with storage.open_seekable(shard) as file:
            return _identity(file)

    return (index.size, index.mark) == storage.retrying(identity, shard, patience)


def add_sums(shard: str, sums: Mapping[int, Mapping[str, int]]) -> None:
    """Keep the sums of these rows' members, as they were read, in the shard's index."""
    index = load(shard).with_sums(sums)
    keep(index.dump(), index_path(shard), _cache_path(shard))
