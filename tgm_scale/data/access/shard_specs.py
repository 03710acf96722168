"""Expansion of shard specifications: folder, glob, brace pattern, file, or a list of these."""

from __future__ import annotations

import glob
import os
from collections import Counter

from braceexpand import braceexpand

from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, base_name, is_url, resolved, split_query, video_extension
from tgm_scale.data.access.patience import retrying
from tgm_scale.data.access.storage import file_system
from tgm_scale.data.lists.foreign_tables import foreign_folder, foreign_table
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.refusals import Refused
from tgm_scale.runtime.terminal import without_secrets


class NoShards(ValueError):
    """No shard where one was named."""


def expand(spec: str | os.PathLike | list[str], patience: float | None = None) -> list[str]:
    """Return the shards named by a folder, a glob, a brace pattern (`{000..099}.tar`), a .tar, or a list of these.

    A folder or a glob gives its .tar files sorted by name. patience: see `retrying`. Raises ValueError naming the
    part of `spec` that holds no shard, and OSError for storage that cannot be listed."""
    parts = [os.fspath(spec)] if isinstance(spec, (str, os.PathLike)) else [os.fspath(part) for part in spec]
    shards: list[str] = []
    for part in parts:
        whole = [part] if not is_url(part) and os.path.exists(part) else list(braceexpand(part))
        for item in whole:
            found = _expand_url(item, patience) if is_url(item) else _expand_path(item)
            if not found:
                raise _no_shards(item, alone=not isinstance(spec, list))
            shards += found
    if not shards:
        raise ValueError("the list of shards is empty; name a folder, a pattern or .tar files")
    places = Counter(map(resolved, shards))
    if len(places) != len(shards):
        twice = next(shard for shard in shards if places[resolved(shard)] > 1)
        raise ValueError(
            f"shard {without_secrets(twice)!r} is named twice; its samples would count double: name it once"
        )
    return shards


def _no_shards(item: str, alone: bool) -> NoShards:
    """Return the error, naming a known format that is present instead. alone: the item was not given in a list."""
    item = without_secrets(item)
    there = [] if is_url(item) or not os.path.isdir(item) else sorted(os.listdir(item))
    if not there and os.path.isfile(item):
        there = [os.path.basename(item)]
    if packed := [name for name in there if _unpacked(name)]:
        return NoShards(_unpack_first(item, packed))
    refusal = foreign_folder(item, there, below=True) if os.path.isdir(item) else foreign_table(item)
    if refusal and not is_url(item):
        return NoShards(refusal)
    if not is_url(item) and os.path.isdir(item) and not there:
        return NoShards(f"{item!r} is an empty folder: name one that holds shards (*.tar) or videos")
    if video_extension(item):
        return NoShards(
            f"no shards (*.tar) at {item!r}, which is a video or a pattern of videos: give the folder, or a list"
            " of them (a CSV with a path a row)"
        )
    if not alone and not is_url(item) and os.path.exists(item):
        return NoShards(
            f"no shards (*.tar) at {item!r}: of places named in brackets each holds shards. Name a list or a folder "
            "of videos alone, without them (one list may have the rows of all), or make shards with `tgm-scale shards "
            "make`"
        )
    near = "" if is_url(item) or os.path.exists(item) else like(item)
    if there and os.path.isdir(item):
        endings = sorted({os.path.splitext(name)[1].lower() for name in there} - {""})
        ends = f": its files end in {', '.join(endings[:5])}" if endings else ""
        near = f", and no videos ({', '.join(VIDEO_EXTENSIONS)}){ends}"
    return NoShards(f"no shards (*.tar) at {item!r}{near}; make some with `tgm-scale shards make` or name another")


_UNPACKERS = {".tar.gz": "gunzip", ".tgz": "gunzip", ".tar.zst": "unzstd", ".tar.bz2": "bunzip2", ".tar.xz": "unxz"}


def _unpacked(name: str) -> str:
    """Return the name of a compressed tar after decompression; "" for other files."""
    return next((f"{name.removesuffix(end)}.tar" for end in _UNPACKERS if name.endswith(end)), "")


def _unpack_first(item: str, packed: list[str]) -> str:
    tool = next(tool for end, tool in _UNPACKERS.items() if packed[0].endswith(end))
    return (
        f"{item!r} holds compressed tars ({base_name(packed[0])}): samples are read by range, so unpack them first, "
        f"such as with {tool}"
    )


def _shards_among(names: list[str], item: str) -> list[str]:
    """Return the shards among `names`, sorted by name. Raises ValueError if some are compressed: they would be
    skipped silently."""
    found = sorted(name for name in names if _is_shard(name))
    packed = sorted(name for name in names if _unpacked(name) and _unpacked(name) not in found)
    if packed and not base_name(packed[0]).startswith("."):
        kind = ValueError if found else NoShards
        raise kind(_unpack_first(without_secrets(item), packed))
    return found


def _expand_path(item: str) -> list[str]:
    if os.path.isdir(item):
        return _shards_among([entry.path for entry in os.scandir(item)], item)
    if os.path.isfile(item):
        return [item] if _is_shard(item) else []
    return _shards_among(glob.glob(item), item)


def _expand_url(item: str, patience: float | None) -> list[str]:
    before, query = split_query(item)
    if "***@" in before or query.endswith("=***"):
        raise ValueError(f"{item!r}: *** stands for what was not kept in a run's files: give the whole address again")
    pattern = glob.has_magic(before.partition("://")[2].partition("/")[2])  # a host may have brackets: [::1]
    if _is_shard(item) and not pattern:
        return [item]
    if query:
        raise ValueError(
            f"{without_secrets(item)!r}: a folder or a pattern with a query behind it cannot be listed: name its "
            "shards, by braces such as {00000..00099}.tar"
        )
    system, path = file_system(item)

    def listing() -> list[str]:
        return system.glob(path) if pattern else system.ls(path, detail=False)

    try:
        found = retrying(listing, item, patience)
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error.__cause__) + str(getattr(error.__cause__, "__cause__", "")):
            raise NoShards(f"{item}: there is no such bucket: correct its name") from None
        return []
    except PermissionError as error:  # for a folder: nothing in it can be read
        raise Refused(str(error)) from error
    return _shards_among([system.unstrip_protocol(name) for name in found], item)


def _is_shard(name: str) -> bool:
    return base_name(name).endswith(".tar") and not base_name(name).startswith(".")
