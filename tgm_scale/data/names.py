"""Names that are identities: no two samples of all that a run opened share one.

A sample is named "shard/key", the shard by its file's name alone. Where that is ambiguous (several runs of
video2dataset, each with its own 00000.tar) the name is extended by as much of the path as tells the shards apart,
"part0:00000/key": so names that were unique before stay as they are, and a folder may move as a whole."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from tgm_scale.data.addresses import place
from tgm_scale.runtime.terminal import escaped

if TYPE_CHECKING:
    from tgm_scale.data.index import Corpus


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


def tell_apart(corpora: Sequence[Corpus]) -> None:
    """Give corpora that are opened together names and fingerprints that no other of them has.

    Names within a corpus are distinct already. Where two corpora share one, both get a prefix: the name of the
    corpus, or as much of its path as is needed. Seeds go by a corpus's fingerprint and the name within it, so they do
    not change by it; copies of the same corpus get fingerprints of their own."""
    owners = Counter(name for corpus in corpora for name in corpus.first_names)
    shared = [corpus for corpus in corpora if any(owners[name] > 1 for name in corpus.first_names)]
    for number, (corpus, prefix) in enumerate(zip(shared, _prefixes([corpus.origin for corpus in shared]))):
        corpus.prefix = f"{prefix or number}:"
    seen: Counter[str] = Counter()
    for corpus in corpora:
        original = corpus.fingerprint
        if seen[original]:
            again = f"{original} {seen[original]}".encode()
            corpus.fingerprint = hashlib.blake2b(again, digest_size=8).hexdigest()
        seen[original] += 1


def _prefixes(origins: Sequence[str]) -> list[str]:
    """Distinct, also where the same folder or list was opened twice: then numbers tell."""
    different = list(dict.fromkeys(origins))
    of_origin = dict(zip(different, distinct_names(different)))
    seen: Counter[str] = Counter()
    found = []
    for origin in origins:
        found.append(of_origin[origin] + (f"#{seen[origin] + 1}" if seen[origin] else ""))
        seen[origin] += 1
    return found


def real_place(path: str) -> str:
    """What a local path leads to; what names the file of a URL."""
    return place(path) if "://" in path else os.path.realpath(path)
