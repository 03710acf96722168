"""A corpus: shards in an order, how many usable samples each holds, and any sample by (shard, row).

Opening is cheap at any size: a catalogue in each folder says how many samples each shard holds, and a shard's own
index is read when a sample of its is first asked for."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import Counter, OrderedDict
from typing import cast

import numpy as np

from tgm_scale.contracts import Problem
from tgm_scale.data import catalogue, shard_index, storage
from tgm_scale.data.shard_index import VIDEO_EXTENSIONS, SampleRef, ShardIndex, Summary
from tgm_scale.data.storage import RangeCache

__all__ = ["VIDEO_EXTENSIONS", "Corpus", "SampleRef", "ShardIndex"]

_KEPT_INDICES = 64  # of about 130 kB for 1,000 samples; more than the shards that an order's window mixes
_GAP = 1 << 16  # remote members nearer than this are read in one piece: 64 KiB cost less than a second request


class Corpus:
    """Open with `Corpus.open`. Threads may share it; it pickles small (a worker reads its indices itself)."""

    def __init__(
        self, name: str, shards: list[str], summaries: list[Summary], cache: RangeCache | None = None
    ) -> None:
        usable = [i for i, summary in enumerate(summaries) if summary.samples]
        self.name = name
        self.shards = [shards[i] for i in usable]
        self.counts = np.array([summaries[i].samples for i in usable], dtype=np.int64)
        self.left_out = sum((Counter(summary.left_out) for summary in summaries), Counter())
        digest = hashlib.blake2b(digest_size=8)
        for i in usable:
            digest.update(f"{shard_index.shard_name(shards[i])} {summaries[i].mark} {summaries[i].samples}\n".encode())
        self.fingerprint = digest.hexdigest()
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._reader = storage.RangeReader(cache, self.fingerprint)

    @classmethod
    def open(
        cls, spec: str | os.PathLike | list[str], name: str | None = None, cache: RangeCache | None = None
    ) -> Corpus:
        """Open the shards of a folder, a glob, a brace pattern, or a list of these; paths or URLs. Or the video files
        that a .txt, .csv or .tsv names (see `listed`).

        `name` (default: the first shard's folder) is for logs; `fingerprint` is what the corpus is by its content,
        wherever it lies. What is read from URLs is kept in `cache`. Missing or stale indices are built: many ranks
        may do so at once, but it is cheaper when one goes first. Shards without a usable sample are left out.
        Raises ValueError where there is no shard, or none of them holds a usable sample."""
        from tgm_scale.data.listed import ListedCorpus, is_list  # it is a Corpus itself

        if is_list(spec):
            return ListedCorpus(os.fspath(cast(str, spec)), name, cache)
        shards = storage.expand(spec)
        if name is None:
            name = os.path.basename(os.path.dirname(os.path.abspath(shards[0]))) or "corpus"
        corpus = cls(name, shards, catalogue.summaries(shards), cache)
        if not corpus.shards:
            why = ", ".join(f"{count} {reason}" for reason, count in corpus.left_out.items()) or "the tars are empty"
            raise ValueError(
                f"corpus {name!r}: none of its {len(shards)} shards holds a usable sample ({why}); a sample needs a "
                f"video member ({', '.join(VIDEO_EXTENSIONS)}): make shards with tools/make_shards.py"
            )
        return corpus

    def __len__(self) -> int:
        return int(self.counts.sum())

    def sample(self, shard: int, row: int) -> SampleRef:
        """Where sample `row` of shard number `shard` lies."""
        return self._index(shard).sample(row)

    def problems(self, shard: int) -> list[Problem]:
        """What was left out of this shard, by name and reason."""
        return self._index(shard).problems

    def read(self, ref: SampleRef, extensions: list[str] | tuple[str, ...]) -> dict[str, bytes]:
        """Those of the members named by `extensions` that the sample has.

        Raises OSError where the shard cannot be read after several attempts: never a reason to skip the sample."""
        wanted = {extension: ref.members[extension] for extension in extensions if extension in ref.members}
        if not wanted:
            return {}
        start = min(offset for offset, _ in wanted.values())
        end = max(offset + size for offset, size in wanted.values())
        sparse = end - start > sum(size for _, size in wanted.values()) + _GAP * len(wanted)
        if sparse or not storage.is_url(ref.shard):  # taken apart, a video would be copied
            return {extension: self._reader.read(ref.shard, *where) for extension, where in wanted.items()}
        data = self._reader.read(ref.shard, start, end - start)
        return {
            extension: data[offset - start : offset - start + size] for extension, (offset, size) in wanted.items()
        }

    def _index(self, shard: int) -> ShardIndex:
        with self._lock:
            index = self._indices.pop(shard, None)
            if index is None:
                index = shard_index.load(self.shards[shard])
                if len(index) != self.counts[shard]:
                    raise OSError(
                        f"{self.shards[shard]} holds {len(index)} samples, {self.counts[shard]} when the corpus was "
                        "opened: it was replaced under the run; start the run again"
                    )
            self._indices[shard] = index
            if len(self._indices) > _KEPT_INDICES:
                self._indices.popitem(last=False)
            return index

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_indices": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
