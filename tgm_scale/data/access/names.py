"""Names that are identities: no two samples of all that a run opened share one.

A sample is named "shard/key", the shard by its file's name alone. Where that is ambiguous (several runs of
video2dataset, each with its own 00000.tar) the name is extended by as much of the path as tells the shards apart,
"part0:00000/key": so names that were unique before stay as they are, and a folder may move as a whole."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from urllib.parse import quote

from tgm_scale.data.access.addresses import place
from tgm_scale.runtime.terminal import escaped


def distinct_names(paths: Sequence[str]) -> list[str]:
    """A name for each of these different paths or URLs: its last part without .tar, with parts before it, joined by
    colons, where others have the same. A key may hold slashes; a name of a shard never does."""
    files = [place(path) for path in paths]
    parts = [path.removesuffix(".tar").replace("://", "/").strip("/").split("/") for path in files]
    parts = [[part for part in each if part not in ("", ".")] for each in parts]
    depth = [1] * len(paths)
    while True:
        names = [":".join(each[-deep:]) for each, deep in zip(parts, depth)]
        count = Counter(names)
        twice = [i for i, name in enumerate(names) if count[name] > 1]
        if not twice:
            return names
        if all(depth[i] >= len(parts[i]) for i in twice):  # such as folders with colons in their names
            return [quote(files[i], safe="") if count[names[i]] > 1 else names[i] for i in range(len(paths))]
        for i in twice:
            depth[i] += 1


def printable(name: str) -> str:
    """A name of a file as text that can be written anywhere, also on a terminal: bytes that are no UTF-8, which Python
    keeps as lone surrogates, become \\udcXX; control characters and line ends \\xXX or \\uXXXX. Another name cannot
    come to be the same unless it holds that very text."""
    return escaped(name, keep="")


def resolved(path: str) -> str:
    """What a local path leads to; what names the file of a URL."""
    return place(path) if "://" in path else os.path.realpath(path)
