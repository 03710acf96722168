"""Tars as other tools write them, and corpora of them."""

from __future__ import annotations

import io
import json
import tarfile


def write_tar(path, members, tar_format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes) as any tool might have written it."""
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def clips(shard, count):
    """Members of `count` samples; the contents differ from shard to shard."""
    for i in range(count):
        yield f"{shard}_{i:04d}.json", json.dumps({"caption": f"caption {shard} {i}"}).encode()
        yield f"{shard}_{i:04d}.mp4", f"video {shard} {i} ".encode() * (50 + i)


def make_corpus(folder, counts):
    folder.mkdir(parents=True, exist_ok=True)
    for shard, count in enumerate(counts):
        write_tar(folder / f"{shard:05d}.tar", clips(shard, count))
    return folder
