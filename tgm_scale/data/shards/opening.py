"""Opening of user-specified data (folders, globs, URLs, lists of videos) as corpora with distinct sample names."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from typing import cast

from tgm_scale.data.access import shard_specs
from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, distinct_names, place, video_extension
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.lists.reading import Selection, is_list, read_list
from tgm_scale.data.shards import shard_manifest
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.shard_index import Summary
from tgm_scale.data.shards.video_list import VideoListCorpus, folder_listing

_MISSING = {"shard_missing": 1}


def open_corpus(
    spec: str | os.PathLike | list[str],
    name: str | None = None,
    cache: DiskCache | None = None,
    *,
    root: str | None = None,
    selection: Selection | None = None,
    patience: float | None = None,
) -> Corpus:
    """Open the shards of a folder, a glob, a brace pattern, or a list of these, as paths or URLs; or the video files
    that a list names (see `data.lists.reading`), relative to `root`, restricted to the `selection`; or the video files
    of a folder, which are those of its labels.csv where it has one.

    `name` (default: the first shard's folder) is for logs; `fingerprint` identifies the corpus by its content,
    independent of its location. Data read from URLs is kept in `cache`; `patience`: seconds of waiting for storage
    that does not answer, see `retrying`. Missing or stale indices are built: many ranks may do so at once, but it is
    cheaper when one goes first. Shards without a usable sample are left out.
    Raises ValueError where there is no shard, or none of them holds a usable sample."""
    if is_list(spec):
        listing = read_list(os.fspath(cast(str, spec)), selection or Selection(wanted="caption"), patience, root)
        return VideoListCorpus(listing, name, cache, root, patience)
    try:
        shards = shard_specs.expand(spec, patience)
    except shard_specs.NoShards:
        files = folder_listing(os.fspath(spec)) if not isinstance(spec, list) and os.path.isdir(spec) else None
        if files is None:
            if not isinstance(spec, list) and os.path.isfile(spec) and video_extension(os.fspath(spec)):
                raise ValueError(f"{spec}: one video; name the folder of it, or a list of videos") from None
            raise
        return VideoListCorpus(files, name, cache)
    if name is None:
        name = os.path.basename(os.path.dirname(os.path.abspath(place(shards[0])))) or "corpus"
    summaries = shard_manifest.summaries(shards, patience)
    gone: list[str] = []
    if not isinstance(spec, list) and os.path.isdir(spec):
        gone = shard_manifest.missing(os.fspath(spec), shards)
    summaries += [Summary("", 0, _MISSING)] * len(gone)
    corpus = Corpus(name, [*shards, *gone], summaries, cache, patience)
    if not corpus.shards:
        why = ", ".join(f"{count} {reason}" for reason, count in corpus.left_out.items())
        first = next(corpus.all_problems())
        raise ValueError(
            f"corpus {name!r}: none of its {len(shards)} shards holds a usable sample ({why}; the first: "
            f"{first.key}: {first.detail}); a sample needs a "
            f"video member ({', '.join(VIDEO_EXTENSIONS)}): make shards with `tgm-scale shards make`"
        )
    return corpus


def make_names_distinct(corpora: Sequence[Corpus]) -> None:
    """Give corpora that are opened together distinct names and fingerprints.

    Names within a corpus are distinct already. Where two corpora share one, both get a prefix: the name of the
    corpus, or as much of its path as is needed. Seeds depend on a corpus's fingerprint and the name within it, so
    the prefix does not change them; copies of the same corpus get fingerprints of their own."""
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
    """Return distinct prefixes, numbered where the same folder or list was opened twice."""
    different = list(dict.fromkeys(origins))
    of_origin = dict(zip(different, distinct_names(different)))
    seen: Counter[str] = Counter()
    found = []
    for origin in origins:
        found.append(of_origin[origin] + (f"#{seen[origin] + 1}" if seen[origin] else ""))
        seen[origin] += 1
    return found
