"""Shard indices on disk: next to their shards, or in the user's cache; built once, and rebuilt where they are wrong.

A corpus made elsewhere gets its indices when it is first opened: next to the tars, or in the user's cache where
they cannot be written. For a remote shard, the cached index contains "tag", which its storage reports for the
file's content (ETag, times): a different tag at a later start means a different file, and everything derived from
the old one is dropped."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tgm_scale.data.access import ranges, storage
from tgm_scale.data.access.addresses import place, printable
from tgm_scale.data.shards.shard_index import DamagedIndex, ShardIndex, identity_of, index_path, shard_name
from tgm_scale.runtime import seeding
from tgm_scale.runtime.outside.refusals import PermanentError
from tgm_scale.runtime.terminal import without_secrets

# Bytes by which an index may exceed its tar: a sample's line has about 100 bytes plus its names, each of which is in a
# header of 512 bytes of the tar; a tar of a few small files is smaller than the index's first line.
_MORE_THAN_TAR = 1 << 16
_FEW, _FEW_OF_MANY = 2, 0.01  # most members that differ (number, share) in a damaged, not rebuilt shard


def load(shard: str, patience: float | None = None) -> ShardIndex:
    """Return the shard's index, built and stored where it is missing or stale.

    Safe to call from many processes at once: the file is written atomically."""
    adjacent, cached = index_path(shard), _cache_path(shard)
    if storage.is_url(shard):
        return _of_remote(shard, adjacent, cached, patience)
    size, fresh, stale = storage.size(shard), list[ShardIndex](), list[ShardIndex]()
    for path in (adjacent, cached):
        index = _whole(shard, path, size, patience)
        if index is None:
            continue
        if not _is_of(index, shard, patience):
            stale.append(index)
            continue
        if index.has_sums:
            return index
        fresh.append(index)
    if fresh:
        return fresh[0]
    return _made(shard, adjacent, cached, patience, stale=stale)


def _of_remote(shard: str, adjacent: str, cached: str, patience: float | None) -> ShardIndex:
    """Return the index of a remote shard. The cached index comes first: it has the tag, and is local. Where the tag
    matches, nothing else is requested: each worker of a large run loads the index of nearly every shard that it
    reads from."""
    size, tag = storage.size_and_tag(shard, patience)
    kept = _whole(shard, cached, size, patience)
    same = kept is not None and kept.size == size and storage.same_tag(kept.tag, tag)
    if kept is not None and same and tag:
        return kept
    kept = kept if kept is not None and _is_of(kept, shard, patience) else None
    if kept is not None and same:
        return kept
    replaced = kept is not None and bool(kept.tag) and bool(tag)
    if replaced:
        sys.stderr.write(
            f"{without_secrets(shard)}: its ETag or time is another than when it was indexed: it was replaced; its "
            "index is rebuilt, and bytes kept of it are not used\n"
        )
    index = _fresh(shard, adjacent, size, patience)
    if index is None or (replaced and kept is not None and index.has_lines_of(kept)):  # the adjacent is old
        return _made(shard, adjacent, cached, patience, tag)
    index.tag = tag
    if tag:
        with suppress(OSError):  # only a copy: without it the next start does not notice a replacement
            storage.write_atomically(Path(cached), index.dump())
    return index


def rebuilt(shard: str, why: DamagedIndex) -> ShardIndex:
    """Rebuild from its tar an index whose file proved damaged in use."""
    _report_damage(index_path(shard), why)
    return _made(shard, index_path(shard), _cache_path(shard), tag=storage.tag(shard))


def _made(
    shard: str,
    adjacent: str,
    cached: str,
    patience: float | None = None,
    tag: str = "",
    stale: Sequence[ShardIndex] = (),
) -> ShardIndex:
    index = storage.retrying(lambda: ShardIndex.scan(shard, patience=patience), shard, patience)
    index.tag = tag  # read before the scan: a shard that is replaced during it has another tag
    if stale:
        damaged = next((old for old in stale if _is_damaged(shard, index, old)), None)
        if damaged is not None:
            index = ShardIndex(shard, index.size, index.mark, damaged.lines, index.problems)
        sums = "with the sums of its members, of which few are others" if damaged else "without sums of its members"
        sys.stderr.write(
            f"{shard}: its size or its ends are not those of the file that was indexed: it was changed or replaced, "
            f"and is another shard to every run; its index is rebuilt, {sums}\n"
        )
    if len(index):  # no index is written for what is not a shard
        keep(index.dump(), adjacent, cached)
    return index


def _is_damaged(shard: str, index: ShardIndex, old: ShardIndex) -> bool:
    """Return whether a shard that does not match its old index is the same shard with a few changed bytes: then the
    old checksums tell which samples are affected. A rebuilt shard differs in all its members. Reads the whole
    shard."""
    members, others = 0, 0
    try:
        if old.size != index.size or not old.has_sums or not old.has_lines_of(index):
            return False
        refs = [old.sample(row) for row in range(len(old))]
    except DamagedIndex:
        return False
    reader = ranges.RangeReader()
    for ref in refs:
        for name in ref.sums.keys() & ref.members.keys():
            members += 1
            others += zlib.crc32(reader.read(shard, *ref.members[name])) != ref.sums[name]
    return others <= max(_FEW, _FEW_OF_MANY * members)


def _report_damage(path: str, why: Exception) -> None:
    reason = printable(" ".join(str(why).split()))
    sys.stderr.write(
        f"{without_secrets(path)}: damaged ({reason[:200]}): rebuilt from the shard, without sums of its members\n"
    )


def keep(data: bytes, adjacent: str, cached: str) -> None:
    """Write a derived file next to the shards, or in the user's cache where they are remote or read-only.

    Raises OSError with the remedy where neither can be written."""
    if not storage.is_url(adjacent):
        try:
            return storage.write_atomically(Path(adjacent), data)
        except OSError:  # read-only, or owned by another user
            pass
    try:
        return storage.write_atomically(Path(cached), data)
    except OSError as error:
        raise OSError(
            f"neither {adjacent} nor {cached} can be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error


def cache_folder() -> Path:
    """Return the folder for indices and manifests of read-only and remote corpora."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tgm_scale" / "index"


def _cache_path(shard: str) -> str:
    where = place(shard) if storage.is_url(shard) else os.path.abspath(shard)
    return str(cache_folder() / f"{seeding.key(where):016x}-{shard_name(shard)}.index.jsonl")


def _fresh(shard: str, path: str, size: int, patience: float | None) -> ShardIndex | None:
    """Return the index at `path` if it exists, is undamaged, and belongs to this tar, which has `size` bytes."""
    index = _whole(shard, path, size, patience)
    return index if index is not None and _is_of(index, shard, patience) else None


def _whole(shard: str, path: str, size: int, patience: float | None) -> ShardIndex | None:
    """Return the index at `path`, whichever tar it belongs to, if it exists and is undamaged."""
    try:
        data = storage.read_small(path, patience, size + _MORE_THAN_TAR)
        return None if data is None else ShardIndex.parse(shard, data)
    except (DamagedIndex, PermanentError) as error:  # PermanentError: too large, or a permanent server error
        _report_damage(path, error)
        return None


def _is_of(index: ShardIndex, shard: str, patience: float | None) -> bool:
    def identity() -> tuple[int, str]:
        with storage.open_seekable(shard, patience) as file:
            return identity_of(file)

    return (index.size, index.mark) == storage.retrying(identity, shard, patience)


def add_sums(shard: str, sums: Mapping[int, Mapping[str, int]]) -> None:
    """Store the checksums of these rows' members, as read, in the shard's index."""
    index = load(shard).with_sums(sums)
    keep(index.dump(), index_path(shard), _cache_path(shard))
