"""Detection of storage that may stall: URLs, and paths on network file systems."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

import psutil

# prefixes of the types of network file systems in the mount table; most FUSE mounts are remote
_NETWORK = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "gluster", "weka", "panfs", "pvfs", "orangefs", "afs", "cifs",
            "smb", "daos", "quobyte", "fuse.", "9p", "virtiofs")  # fmt: skip
_LOCAL = ("fuse.fuse-overlayfs", "fuse.squashfuse", "fuse.squashfuse_ll")  # used by containers


def may_stall(places: Iterable[str | None]) -> bool:
    """Return whether a read from any of these places (paths, patterns, URLs) may block for minutes and still
    succeed, as during the failover of a network file system's server."""
    given = [place for place in places if place]
    mounted = {}
    with suppress(OSError):  # a container without /proc
        mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    return any("://" in place or _of_network(_type(place, mounted).lower()) for place in given)


def _of_network(kind: str) -> bool:
    return kind.startswith(_NETWORK) and kind not in _LOCAL


def _type(path: str, mounted: Mapping[str, str]) -> str:
    """Return the type of the file system that holds a path: that of the longest mount point above it."""
    real = os.path.realpath(path)
    above = [mount for mount in mounted if os.path.isabs(mount) and os.path.commonpath([mount, real]) == mount]
    return mounted[max(above, key=len)] if above else ""
