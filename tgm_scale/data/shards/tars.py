"""Writer of shards: WebDataset tars with their indices, the same bytes for the same samples.

A shard appears atomically: it is written under a unique temporary name (`storage.partial_of`), flushed to disk,
indexed, renamed. Two jobs that make the same shard thus both make it whole, and the later one's stays."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.writer import TarWriter

from tgm_scale.data.access import storage
from tgm_scale.data.access.addresses import printable
from tgm_scale.data.shards.shard_index import ShardIndex, index_path, split_name
from tgm_scale.runtime.outside.json_text import json_of

CLIPS_PER_SHARD = 1000  # of about 430 kB at short side 256: half a gigabyte, which a parallel file system streams well


def shard_path(folder: str | os.PathLike, number: int) -> Path:
    """Return `FOLDER/00042.tar`."""
    return Path(folder) / f"{number:05d}.tar"


def encode_member(extension: str, value: Any) -> bytes:
    """Return the bytes of a member: bytes unchanged, str as UTF-8, arrays as .npy, dicts and lists as JSON."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, np.ndarray):
        buffer = io.BytesIO()
        np.save(buffer, value, allow_pickle=False)
        return buffer.getvalue()
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False, sort_keys=True).encode()
    raise ValueError(
        f"member {extension!r}: a {type(value).__name__} cannot be written; give bytes, str, array or dict"
    )


def is_whole(tar: Path) -> bool:
    """Return whether the tar has the size recorded in its index, which was written before it; without an index,
    whether it ends with the end-of-archive marker."""
    size = tar.stat().st_size if tar.is_file() else 0
    try:
        with open(index_path(str(tar)), "rb") as index:
            return size == json_of(index.readline())["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return size > 0 and _ends(tar, size)


def _ends(tar: Path, size: int) -> bool:
    """Return whether it ends with two blocks of zeros, which is unlikely inside a video where a copy was truncated."""
    with open(tar, "rb") as file:
        file.seek(max(0, size - 2 * tarfile.BLOCKSIZE))
        return file.read() == bytes(2 * tarfile.BLOCKSIZE)


class ShardWriter:
    """Writer of samples into numbered shards of `clips_per_shard`.

        with ShardWriter(folder) as writer:
            writer.write("clip_1", {"mp4": data, "json": {"captions": ["a red ball"]}})

    On an error it keeps the finished shards and no part of the current one."""

    def __init__(self, folder: str | os.PathLike, clips_per_shard: int = CLIPS_PER_SHARD, first: int = 0) -> None:
        self._folder, self._clips_per_shard, self._number = Path(folder), clips_per_shard, first
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sums: dict[str, dict[str, int]] = {}  # by key and extension, of the intended content
        self._file: io.BufferedWriter | None = None
        self._tar: TarWriter | None = None

    def write(self, key: str, members: dict[str, Any]) -> None:
        """Add one sample; members by extension, see `encode_member`. Raises ValueError for a key that would not be
        read back unchanged (a dot in its last part would start the extension), or that this shard holds already."""
        if not key or printable(key) != key or split_name(f"{key}.mp4") != (key, "mp4"):
            raise ValueError(
                f"sample key {key!r}: its part behind the last '/' is not empty and has no dot, and nothing in it is "
                "a control character"
            )
        if key in self._sums:
            raise ValueError(f"sample key {key!r} is written twice")
        encoded = {extension: encode_member(extension, value) for extension, value in members.items()}
        if self._tar is None:
            self._partial = storage.partial_of(shard_path(self._folder, self._number))
            self._file = open(self._partial, "wb")  # noqa: SIM115 (closed by `finish` or `abandon`)
            self._tar = TarWriter(self._file, encoder=False, mtime=0)
        self._tar.write({"__key__": key, **encoded})
        self._sums[key] = sums = dict[str, int]()
        for extension in sorted(encoded):  # in the tar's order; of members that differ in case the first is read
            sums.setdefault(extension.lower(), zlib.crc32(encoded[extension]))
        if len(self._sums) == self._clips_per_shard:
            self.finish()

    def finish(self) -> None:
        """Finish the current shard, if there is one; the next sample starts another."""
        if self._tar is None or self._file is None:
            return
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = shard_path(self._folder, self._number)
        index = ShardIndex.scan(str(self._partial), self._sums)
        storage.write_atomically(Path(index_path(str(path))), index.dump())
        os.replace(self._partial, path)
        self._tar, self._file, self._sums, self._number = None, None, {}, self._number + 1

    def abandon(self) -> None:
        """Discard the current shard."""
        if self._tar is not None and self._file is not None:
            with suppress(OSError):  # such as a full disk: closing writes the end of what is discarded
                self._tar.close()
            with suppress(OSError):
                self._file.close()
            self._partial.unlink(missing_ok=True)
            self._tar = self._file = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()
