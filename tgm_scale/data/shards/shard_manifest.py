"""Manifest of a folder of shards: size and count of each, so that opening ten thousand shards reads one file.

`shards.catalogue.json` lies next to the shards, or in the user's cache where they are remote or read-only, and can
be derived from their indices at any time. Its key "" holds the digest of the other entries (older files lack it); a
damaged manifest is rebuilt. A local shard whose size or modification time differs from the manifest's is examined
again; a remote manifest is trusted until one of its shards proves to be a different one."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated

from pydantic import Field, TypeAdapter

from tgm_scale.data.access import addresses, storage
from tgm_scale.data.access.patience import ends_waits
from tgm_scale.data.shards import index_cache, shard_index
from tgm_scale.data.shards.shard_index import ShardIndex, Summary
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.outside.refusals import PermanentError
from tgm_scale.runtime.terminal import without_secrets

MANIFEST = "shards.catalogue.json"
_LARGEST = 1 << 26  # bytes, for half a million shards

Stamp = list[int]  # bytes and modification time of a local shard, at the cost of one stat; empty for a remote one
Manifest = dict[str, tuple[Stamp, Summary]]
_ENTRIES = TypeAdapter(dict[str, tuple[Annotated[Stamp, Field(max_length=2)], Summary]])


def summaries(shards: list[str], patience: float | None = None) -> list[Summary]:
    """Return each shard's summary, from its folder's manifest or else from its index; manifests are updated."""
    folders = defaultdict(list)
    for shard in shards:
        folders[addresses.folder(shard)].append(shard)
    found: dict[str, Summary] = {}
    for folder, members in folders.items():
        known = _read(folder, patience)
        missing = [shard for shard in members if not _knows(known, shard)]
        # threads: they wait for disks and servers, not for the processor
        ended = threading.Event()
        with ThreadPoolExecutor(8, initializer=ends_waits, initargs=(ended,)) as pool:
            try:
                for shard, entry in zip(missing, pool.map(partial(_examine, patience=patience), missing)):
                    known[addresses.base_name(shard)] = entry
            except BaseException:
                ended.set()  # one error is enough, and so is Ctrl-C: ends the waits of the other threads
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if missing and any(summary.samples for _, summary in known.values()):
            _write(folder, known)
        found |= {shard: known[addresses.base_name(shard)][1] for shard in members}
    return [found[shard] for shard in shards]


def missing(folder: str, shards: list[str]) -> list[str]:
    """Return the missing shards of a local folder that its manifest or an index of their own mentions, as after an
    interrupted copy."""
    there, ending = set(map(addresses.base_name, shards)), shard_index.index_path(".tar")
    indices = (name for name in os.listdir(folder) if name.endswith(ending) and not name.startswith("."))
    names = {name.removesuffix(ending) + ".tar" for name in indices}
    names |= {name for name, (_, summary) in _manifest(_paths(folder)[0], report=False).items() if summary.samples}
    return [os.path.join(folder, name) for name in sorted(names - there)]


def _knows(known: Manifest, shard: str) -> bool:
    """Return whether the manifest's entry is the shard's. A remote shard's entry, which has no time, is trusted:
    reading reveals a replacement, except for a shard recorded as empty, which is never read and so examined again."""
    entry = known.get(addresses.base_name(shard))
    if entry is None or not storage.is_url(shard):
        return entry is not None and entry[0] == _stamp(shard)
    return entry[1].samples > 0


def _stamp(shard: str) -> Stamp:
    if storage.is_url(shard):
        return []
    stat = os.stat(shard)
    return [stat.st_size, stat.st_mtime_ns]


def _examine(shard: str, patience: float | None) -> tuple[Stamp, Summary]:
    stamp = _stamp(shard)  # read first: a shard replaced meanwhile is examined again at the next opening
    return stamp, index_cache.load(shard, patience).summary


def _paths(folder: str) -> tuple[str, str]:
    """Return the manifest's paths: next to the shards, and in the user's cache."""
    where = addresses.place(folder) if "://" in folder else os.path.abspath(folder)
    name = hashlib.blake2b(where.encode(), digest_size=8).hexdigest()
    return addresses.joined(folder, MANIFEST), str(index_cache.cache_folder() / f"{name}-{MANIFEST}")


def _read(folder: str, patience: float | None = None) -> Manifest:
    adjacent, cached = _paths(folder)
    beside, learnt = _manifest(adjacent, patience=patience), _manifest(cached)
    if storage.is_url(folder) and any(beside.get(name, entry)[1] != entry[1] for name, entry in learnt.items()):
        return learnt  # the manifest next to the shards is older than one of them
    return beside | learnt


def _manifest(path: str, report: bool = True, patience: float | None = None) -> Manifest:
    try:
        data = storage.read_small(path, patience, _LARGEST)
        return {} if data is None else _parsed(data)
    except (ValueError, PermanentError) as error:  # truncated, or of another version: all of it can be derived
        if report:
            why = " ".join(str(error).split())[:200]
            sys.stderr.write(f"{without_secrets(path)}: damaged ({why}): rebuilt from the shards\n")
        return {}


def _parsed(data: bytes) -> Manifest:
    """Parse a manifest. Raises ValueError if it is invalid, or does not match its digest."""
    plain = json_of(data)
    if not isinstance(plain, dict):
        raise ValueError(f"wanted an object, found {type(plain).__name__}")
    digest = plain.pop("", None)
    if digest not in (None, _digest(plain)):
        raise ValueError("its entries are not those that were written")
    return _ENTRIES.validate_python(plain)


def _digest(plain: dict) -> str:
    return hashlib.blake2b(json.dumps(plain, sort_keys=True).encode(), digest_size=16).hexdigest()


def correct(shard: str, index: ShardIndex) -> None:
    """Update a shard's entry to its index, where the manifest differs, for the next opening. For a remote folder,
    whose shards have no times, cached entries of the other shards are dropped: if one was replaced, others may have
    been."""
    known = {} if storage.is_url(folder := addresses.folder(shard)) else _read(folder)
    known[addresses.base_name(shard)] = _stamp(shard), index.summary
    with suppress(OSError):
        _write(folder, known)


def _write(folder: str, known: Manifest) -> None:
    plain: dict = {name: [stamp, asdict(summary)] for name, (stamp, summary) in sorted(known.items())}
    plain = {"": _digest(plain), **plain}
    index_cache.keep(json.dumps(plain, separators=(",", ":")).encode(), *_paths(folder))
