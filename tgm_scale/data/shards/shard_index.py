"""Index of one shard: the location of each sample's members in its tar, so that a sample is read by range.

`NAME.index.jsonl` next to `NAME.tar`: a first line {"bytes", "mark", "samples", "problems", "blake2b"}, then one line
for each sample, {"key", "members": {extension: [offset, size]}, "crc32": {extension: sum}}. Size and mark (a digest of
both ends) tie it to its tar; file times do not, because copies and downloads change them. "blake2b" is a digest of the
lines that follow, which older indices lack; a damaged index is rebuilt from the tar.

"crc32" are the checksums of the members' bytes (zlib.crc32), verified whenever a member is read. The writer of a
shard computes them from the intended content. An index built from a tar has none, since only the headers are read
for it (for ten million clips the rest is terabytes); `tgm-scale shards check`, which reads all, adds them. For the
location and creation of indices see index_cache.py."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from tarfile import TarInfo
from typing import Annotated, BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from tgm_scale.contracts import Problem
from tgm_scale.data.access import storage
from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, base_name, printable, split_query
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.tars import BLOCK, BrokenTar, members_of

_VIDEOS = frozenset(VIDEO_EXTENSIONS)
_MARK_BYTES = 1 << 14  # of the tar's end: its padding is at most 10,240 bytes, so some of the last sample is in it


@dataclass(frozen=True)
class SampleRef:
    """Location of one sample: its key, its shard (path or URL), and (offset, size) in bytes of each member.

    Members are named by extension: all after the first dot of the member's name, in lower case ("mp4", "tgm.npy").
    `within` is the sample's name in its corpus, "shard-name/sample-key", and `prefix` distinguishes it from those
    of other corpora. `sums`: zlib.crc32 of members, where known. `line`: the position in the list that names it, ""
    in a folder of videos; None in a shard."""

    key: str
    shard: str
    members: dict[str, tuple[int, int]]
    within: str
    prefix: str = ""
    sums: dict[str, int] = field(default_factory=dict)
    line: str | None = None

    @property
    def video(self) -> str:
        """Extension of its video."""
        return next(extension for extension in VIDEO_EXTENSIONS if extension in self.members)

    @property
    def name(self) -> str:
        """Name of the sample, unique within the run (`opening.make_names_distinct`)."""
        return self.prefix + self.within


def shard_name(shard: str) -> str:
    """Return the shard's name without its folder and .tar."""
    return base_name(shard).removesuffix(".tar")


@dataclass(frozen=True)
class Summary:
    """Summary of a shard, all that a corpus needs before reading from it: mark, usable samples, what was left out."""

    mark: str
    samples: Annotated[int, Field(ge=0)]
    left_out: dict[str, Annotated[int, Field(ge=0)]]  # reason -> count


class DamagedIndex(ValueError):
    """Index file with impossible values. It is a cache: `rebuilt` builds it again."""


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)
    bytes: int = Field(ge=0)
    mark: str
    samples: int = Field(ge=0)
    problems: list[Annotated[list[str], Field(min_length=3, max_length=3)]]
    blake2b: str | None = None
    tag: str = ""


class ShardIndex:
    """Samples of one shard. Lines are parsed on demand."""

    def __init__(
        self, shard: str, size: int, mark: str, lines: list[bytes], problems: list[Problem], tag: str = ""
    ) -> None:
        self.shard, self.size, self.mark, self.problems, self.tag = shard, size, mark, problems, tag
        self.lines = lines

    def __len__(self) -> int:
        return len(self.lines)

    def sample(self, row: int, name: str | None = None, prefix: str = "") -> SampleRef:
        """Return sample `row` of the shard, which is called `name` in its corpus (default: its file's name)."""
        key, members, sums = self._parsed(self.lines[row])
        return SampleRef(key, self.shard, members, f"{name or shard_name(self.shard)}/{key}", prefix, sums)

    @property
    def has_sums(self) -> bool:
        """Whether checksums of its members are known, of all samples or of those that could be read."""
        return any(_SUMS in line for line in self.lines)  # within a JSON string it would be escaped

    def with_sums(self, sums: Mapping[int, Mapping[str, int]]) -> ShardIndex:
        """Return the same index with the checksums of these rows' members."""
        lines = list(self.lines)
        for row, of_members in sums.items():
            key, members, _ = self._parsed(lines[row])
            lines[row] = _sample_line(key, members, of_members)
        return ShardIndex(self.shard, self.size, self.mark, lines, self.problems, self.tag)

    def has_lines_of(self, other: ShardIndex) -> bool:
        """Return whether both hold the same samples at the same places, with the same checksums where both have
        them."""
        if self.has_sums == other.has_sums or len(self) != len(other):
            return self.lines == other.lines
        return all(self._parsed(a)[:2] == self._parsed(b)[:2] for a, b in zip(self.lines, other.lines))

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
        """Return the index file's content."""
        problems = [[problem.key, problem.reason, problem.detail] for problem in self.problems]
        head = _line(
            {
                "bytes": self.size,
                "mark": self.mark,
                "samples": len(self),
                "problems": problems,
                "blake2b": _digest(self.lines),
                **({"tag": self.tag} if self.tag else {}),
            }
        )
        return b"\n".join([head, *self.lines]) + b"\n"

    @classmethod
    def parse(cls, shard: str, data: bytes) -> ShardIndex:
        """Parse an index file. Raises DamagedIndex where `data` is not a complete index."""
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
    def scan(
        cls, shard: str, sums: Mapping[str, Mapping[str, int]] | None = None, patience: float | None = None
    ) -> ShardIndex:
        """Build the index from the headers of the tar. sums: of each sample's members, by its key, where known;
        patience: see `retrying`. Unusable content is a problem, never an error:

        `no_video` (a failed download leaves its captions), `key_with_dot`, `shard_cut` (the tar ends too early;
        what is complete before the cut is used), `shard_unreadable` (not a tar, or a compressed one),
        `duplicate_member` (the first is used)."""
        found = _Members()
        with storage.open_seekable(shard, patience) as file:
            size, mark = identity_of(file)
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
    def __init__(self) -> None:
        self.members: dict[str, dict[str, tuple[int, int]]] = {}
        self.problems: list[Problem] = []
        self.cut_keys: set[str] = set()

    def read(self, file: BinaryIO, size: int) -> str:
        """Read all headers. Return why the tar does not end properly, "" where it does."""
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
    """Return why a sample has no video. A dot in its key, as in id_00:00:01.250.mp4, ends the key early: then each
    name with a video extension was meant to be a sample."""
    dotted = [name for name in extensions if name.rpartition(".")[2] in VIDEO_EXTENSIONS]
    if not dotted:
        return [Problem(key, "no_video", "has " + ", ".join(sorted(extensions)))]
    return [
        Problem(
            f"{key}.{name}",
            "key_with_dot",
            f"a key ends at the first dot of a name, here after {key!r}: rename the members, or rebuild the shards",
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


def identity_of(file: BinaryIO) -> tuple[int, str]:
    """Return size and mark of a tar; the file is left at its start."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MARK_BYTES))
    digest = hashlib.blake2b(file.read(_MARK_BYTES), digest_size=8)
    file.seek(0)
    digest.update(file.read(BLOCK))
    file.seek(0)
    return size, digest.hexdigest()


def split_name(name: str) -> tuple[str, str]:
    """Return key and extension of a member: the extension is all after the first dot of the last part of the name."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem if stem else ""), extension.lower()


def index_path(shard: str) -> str:
    """Return the path of the index next to its shard."""
    path, query = split_query(shard)
    return path.removesuffix(".tar") + ".index.jsonl" + query
