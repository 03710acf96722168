"""Where a read may wait for minutes: URLs, and file systems of a network by the table of mounts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from tgm_scale.data.access.mounts import may_stall


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster's table of mounts, whose places are below a folder here."""
    table = {"/": "ext4", "scratch": "lustre", "scratch/local": "xfs", "home": "nfs4", "data": "fuse.gcsfuse",
             "disk": "fuseblk", "apple": "apfs", "image": "fuse.fuse-overlayfs"}  # fmt: skip
    found = [SimpleNamespace(mountpoint=str(tmp_path / place), fstype=kind) for place, kind in table.items()]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: found)
    (tmp_path / "linked").symlink_to(tmp_path / "scratch/shards")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "stalls"),
    [
        ("scratch/shards", True),
        ("scratch/shards/{0..9}.tar", True),
        ("linked", True),
        ("home/me/list.csv", True),
        ("data/shards", True),
        ("scratch/local/shards", False),
        ("scratchy/shards", False),
        ("disk/shards", False),
        ("apple/shards", False),
        ("image/shards", False),
    ],
)
def test_a_file_system_of_a_network_may_stall(mounts: Path, place: str, stalls: bool) -> None:
    assert may_stall([None, str(mounts / place)]) == stalls


def test_urls_may_stall_and_this_folder_does_not() -> None:
    assert may_stall(["https://host/0.tar"]) and may_stall(["here", "s3://bucket/0.tar"])
    assert not may_stall([None]) and not may_stall([])
