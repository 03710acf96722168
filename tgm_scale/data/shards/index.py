"""Corpus: an ordered list of shards, the number of usable samples in each, and access to any sample by (shard, row).

Opening is cheap at any size: a manifest in each folder records how many samples each shard holds, and a shard's own
index is read when one of its samples is first requested."""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections import Counter, OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tgm_scale.contracts import NOTICES, Problem
from tgm_scale.data.access import ranges, storage
from tgm_scale.data.access.addresses import VIDEO_EXTENSIONS, distinct_names, folder, place
from tgm_scale.data.access.disk_cache import DiskCache
from tgm_scale.data.shards import index_cache, shard_index, shard_manifest
from tgm_scale.data.shards.shard_index import DamagedIndex, SampleRef, ShardIndex, Summary
from tgm_scale.runtime.terminal import without_secrets

__all__ = ["VIDEO_EXTENSIONS", "Corpus", "DamagedMember", "SampleRef", "ShardIndex"]

_KEPT_INDICES = 64  # of about 130 kB for 1,000 samples; more than the shards that a window of the order mixes
_GAP = 1 << 16  # remote members closer than this are read in one piece: 64 KiB cost less than a second request


WHOLE_SHARD = ("shard_unreadable", "shard_cut", "shard_empty", "shard_missing")
_EMPTY = {"shard_empty": 1}
_SAID = {  # messages for shards that cannot be read
    "shard_empty": "holds no member",
    "shard_missing": "is not there, but its index or the catalogue is: copy it again, or remove them",
}


class DamagedMember(ValueError):
    """Error for a member whose bytes do not match their checksum in the index; `problem` names the sample."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.problem.key}: {self.problem.reason}: {self.problem.detail}"


def _lost(summaries: list[Summary], faults: list[dict[str, int]]) -> float:
    """Estimate how many samples were left out. The content of a truncated or unreadable shard is unknown: it is
    taken to hold as many samples as the others on average."""
    whole = [s.samples for s, fault in zip(summaries, faults) if s.samples and not fault.keys() & set(WHOLE_SHARD)]
    usual = sum(whole) / len(whole) if whole else 1.0
    lost = 0.0
    for summary, fault in zip(summaries, faults):
        single = sum(count for reason, count in fault.items() if reason not in NOTICES)
        lost += max(single, usual - summary.samples) if fault.keys() & set(WHOLE_SHARD) else single
    return lost


def _damaged(ref: SampleRef, members: dict[str, bytes]) -> list[str]:
    """Return the extensions of the members that do not match their checksum in the index."""
    return [name for name, data in members.items() if name in ref.sums and zlib.crc32(data) != ref.sums[name]]


class Corpus:
    """Corpus of shards, opened with `opening.open_corpus`. It is thread-safe and pickles small (each worker reads
    the indices itself)."""

    def __init__(
        self,
        name: str,
        shards: list[str],
        summaries: list[Summary],
        cache: DiskCache | None = None,
        patience: float | None = None,
    ) -> None:
        usable = [i for i, summary in enumerate(summaries) if summary.samples]
        self.name, self.patience = name, patience
        self.prefix = ""  # prefix of its samples' names; see opening.make_names_distinct
        self.origin = place(folder(shards[0])) if shards else name
        names = distinct_names(shards)
        self.first_names = [names[i] for i in usable]  # what the names of each shard's samples begin with
        self.shards = [shards[i] for i in usable]
        self.counts = np.array([summaries[i].samples for i in usable], dtype=np.int64)
        self._marks = [summaries[i].mark for i in usable]
        faults = [dict(summary.left_out) if summary.samples or summary.left_out else _EMPTY for summary in summaries]
        self.left_out = sum(map(Counter, faults), Counter())
        self._faulty = [(shards[i], names[i], faults[i]) for i in range(len(shards)) if faults[i]]
        self.lost = _lost(summaries, faults)
        digest = hashlib.blake2b(digest_size=8)
        for i in usable:
            digest.update(f"{names[i]} {summaries[i].mark} {summaries[i].samples}\n".encode())
        self.fingerprint = digest.hexdigest()
        self.marks = {names[i]: f"{summaries[i].mark} {summaries[i].samples}" for i in usable}  # what it consists of
        self.content = ""  # identifies captions and labels where the marks of the tars do not
        self._problems_of: dict[str, list[Problem]] | None = None  # of faulty shards, once requested
        self._indices: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        self._loading: dict[int, threading.Lock] = {}
        self._reader = ranges.RangeReader(cache, self.fingerprint, patience)

    def __len__(self) -> int:
        return int(self.counts.sum())

    def sample(self, shard: int, row: int) -> SampleRef:
        """Return the location of sample `row` of shard number `shard`."""
        try:
            return self._index(shard).sample(row, self.first_names[shard], self.prefix)
        except DamagedIndex as error:
            index = index_cache.rebuilt(self.shards[shard], error)
            with self._lock:
                self._keep(shard, index)
            return index.sample(row, self.first_names[shard], self.prefix)

    def problems(self, shard: int) -> list[Problem]:
        """Return what was left out of this shard, by name and reason."""
        return self._index(shard).problems

    @property
    def refs(self) -> Iterator[SampleRef]:
        """Location of each sample, shard by shard."""
        return (self.sample(shard, row) for shard, count in enumerate(self.counts.tolist()) for row in range(count))

    def all_problems(self) -> Iterator[Problem]:
        """Yield what was left out of all shards, including those without any usable sample, under the names of
        samples."""
        if self._problems_of is None:
            faulty = [shard for shard, _, faults in self._faulty if not faults.keys() & _SAID.keys()]
            with ThreadPoolExecutor(8) as pool:  # threads: they wait for disks and servers, not for the processor
                self._problems_of = dict(zip(faulty, pool.map(lambda shard: index_cache.load(shard).problems, faulty)))
        for shard, name, faults in self._faulty:
            if reason := next(iter(faults.keys() & _SAID.keys()), None):
                yield Problem(self.prefix + name, reason, f"{without_secrets(shard)} {_SAID[reason]}")
                continue
            for problem in self._problems_of[shard]:
                whole = problem.key == shard_index.shard_name(shard) and problem.reason in WHOLE_SHARD
                key = name if whole else f"{name}/{problem.key}"
                detail = f"{without_secrets(shard)}: {problem.detail}" if whole else problem.detail
                yield Problem(self.prefix + key, problem.reason, detail)

    def read(self, ref: SampleRef, extensions: list[str] | tuple[str, ...]) -> dict[str, bytes]:
        """Return the sample's members among `extensions`, each checked against its checksum in the index.

        Raises DamagedMember on a mismatch: a reason to leave the sample out. Raises OSError where the shard cannot
        be read after several attempts: never a reason to skip the sample."""
        wanted = {extension: ref.members[extension] for extension in extensions if extension in ref.members}
        if not wanted:
            return {}
        found = self._members(ref, wanted)
        if _damaged(ref, found) and storage.is_url(ref.shard):  # damaged in transit, or in the disk cache
            found = self._members(ref, wanted, refresh=True)
        if damaged := _damaged(ref, found):
            raise DamagedMember(
                Problem(
                    ref.name,
                    "damaged_member",
                    f"the bytes of {', '.join(damaged)} are others than when {without_secrets(ref.shard)} was indexed "
                    "(crc32); where that is meant, delete its .index.jsonl",
                )
            )
        return found

    def _members(self, ref: SampleRef, wanted: dict[str, tuple[int, int]], refresh: bool = False) -> dict[str, bytes]:
        start = min(offset for offset, _ in wanted.values())
        end = max(offset + size for offset, size in wanted.values())
        sparse = end - start > sum(size for _, size in wanted.values()) + _GAP * len(wanted)
        if sparse or not storage.is_url(ref.shard):  # splitting local data would copy a video
            return {name: self._reader.read(ref.shard, *where, [where], refresh) for name, where in wanted.items()}
        data = self._reader.read(ref.shard, start, end - start, list(wanted.values()), refresh)
        return {
            extension: data[offset - start : offset - start + size] for extension, (offset, size) in wanted.items()
        }

    def _index(self, shard: int) -> ShardIndex:
        """Return the index of a shard. Threads load different shards concurrently, and each shard once."""
        with self._lock:
            if shard in self._indices:
                return self._keep(shard, self._indices.pop(shard))
            loading = self._loading.setdefault(shard, threading.Lock())
        with loading:
            with self._lock:
                index = self._indices.pop(shard, None)
            if index is None:
                index = index_cache.load(self.shards[shard], self.patience)
            with self._lock:
                self._loading.pop(shard, None)
                return self._keep(shard, index)

    def _keep(self, shard: int, index: ShardIndex) -> ShardIndex:
        if len(index) != self.counts[shard] or index.mark != self._marks[shard]:
            shard_manifest.correct(self.shards[shard], index)
            raise OSError(
                f"{without_secrets(self.shards[shard])} holds {len(index)} samples, {self.counts[shard]} when the "
                "corpus was opened, or others: it was replaced under the run; start the run again"
            )
        self._reader.expect(self.shards[shard], index.size, index.tag)
        self._indices[shard] = index
        if len(self._indices) > _KEPT_INDICES:
            self._indices.popitem(last=False)
        return index

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_indices": OrderedDict(), "_lock": None, "_loading": {}, "_problems_of": None}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
