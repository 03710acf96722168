"""Which places are on a storage that may not answer for a while: URLs, and paths on a network's file system."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

import psutil

# how the types of network file systems begin in the table of mounts; FUSE mounts are of a network mostly
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "gluster", "weka", "panfs", "pvfs", "orangefs", "afs", "cifs",
            "smb", "daos", "quobyte", "fuse.", "9p", "virtiofs")  # fmt: skip
_LOCAL = ("fuse.fuse-overlayfs", "fuse.squashfuse", "fuse.squashfuse_ll")  # of containers


def may_stall(places: Iterable[str | None]) -> bool:
    """Whether a read from one of the places (paths, patterns, URLs) may take minutes and be answered all the same: as
    while the server of a network's file system is replaced by another, when reads block."""
    given = [place for place in places if place]
    mounted = {}
    with suppress(OSError):  # a container without /proc
        mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return any("://" in place or _of_network(_type(place, mounted).lower()) for place in given)


def _of_network(kind: str) -> bool:
    return kind.startswith(_NETWORK) and kind not in _LOCAL


def _type(path: str, mounted: Mapping[str, str]) -> str:
    """Of the file system that holds it: of the longest mount above it."""
    real = os.path.realpath(path)
    above = [mount for mount in mounted if os.path.isabs(mount) and os.path.commonpath([mount, real]) == mount]
    return mounted[max(above, key=len)] if above else ""
