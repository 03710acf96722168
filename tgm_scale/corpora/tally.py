"""Results of a check, summed while samples are inspected: about 60 bytes per sample stay in memory, and the names of
samples with faults."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from tgm_scale.corpora.inspector import SampleStats
from tgm_scale.data.building.annotations import CAPTION_EXTENSIONS, captions_of
from tgm_scale.data.shards.index import Corpus, DamagedMember
from tgm_scale.data.shards.inventory import Inventory
from tgm_scale.runtime.terminal import without_secrets

NAMES_SHOWN = 5
QUANTILES = (0, 0.1, 0.5, 0.9, 1)


class Tally:
    """Tally of a check: add the samples of a corpus in stored order, then request the report."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.looked_at = 0
        self._broken: defaultdict[str, list[list[str]]] = defaultdict(list)
        self._crashed: list[list[str]] = []
        self._named: defaultdict[str, list[Any]] = defaultdict(list)  # by fault or oddity
        self._seconds = array("d")
        self._frames, self._short_side, self._captions, self._words = (Counter[int]() for _ in range(4))
        self._digests, self._of = bytearray(), (array("I"), array("I"))  # of videos; shard and row of each
        self._texts, self._in = array("Q"), (array("I"), array("I"))  # hashes of captions; shard and row of each

    def crashed(self, name: str) -> None:
        """Count a sample whose decoding process died."""
        self.looked_at += 1
        self._crashed.append([name, "the decoding process died"])

    def add(self, shard: int, row: int, found: SampleStats) -> None:
        self.looked_at += 1
        if found.problem is not None:
            self._broken[found.problem.reason].append([found.name, found.problem.detail])
        else:
            self._seconds.append(found.seconds)
            self._frames[found.frames] += 1
            self._short_side[min(found.width, found.height)] += 1
        if not found.digest:  # its members could not be read
            return
        self._digests += bytes.fromhex(found.digest)
        _append(self._of, shard, row)
        self._captions[len(found.captions)] += 1
        for caption in found.captions:
            self._words[len(caption.split())] += 1
            self._texts.append(_hash(caption))
            _append(self._in, shard, row)
        self._named["unfit_captions"] += [[found.name, fault] for fault in found.unfit_captions]
        odd = {"without_caption": not found.captions, "broken_json": found.json_broken, "interlaced": found.interlaced}
        for what in (what for what, is_so in odd.items() if is_so):
            self._named[what].append(found.name)

    def report(self, opened: Inventory) -> dict[str, Any]:
        """Return the report as a JSON tree. Reads the samples with the commonest captions once more."""
        broken = {**self._broken, **({"decoder_crashed": self._crashed} if self._crashed else {})}
        return {
            "corpus": self._corpus.name,
            "fingerprint": self._corpus.fingerprint,
            "shards": len(self._corpus.shards),
            "samples": len(self._corpus),
            "left_out": dict(self._corpus.left_out),
            "opened": opened.as_dict(),
            "looked_at": self.looked_at,
            "broken": broken,
            "broken_share": sum(map(len, broken.values())) / self.looked_at,
            "seconds": _quantiles(self._seconds),
            "hours": sum(self._seconds) / 3600,
            "frames": _quantiles(self._frames.elements()),
            "short_side": _quantiles(self._short_side.elements()),
            "captions_a_sample": dict(sorted(self._captions.items())),
            "caption_words": _quantiles(self._words.elements()),
            "commonest_captions": self._commonest(),
            **{what: self._named[what] for what in ("without_caption", "unfit_captions", "broken_json", "interlaced")},
            "doubles": self._doubles(),
        }

    def _commonest(self) -> list[tuple[str, int]]:
        """Return the commonest captions with their counts; among equal counts the first ones."""
        _, firsts, counts = np.unique(np.array(self._texts, np.uint64), return_index=True, return_counts=True)
        return [(self._text(int(firsts[at])), int(counts[at])) for at in np.lexsort((firsts, -counts))[:NAMES_SHOWN]]

    def _text(self, at: int) -> str:
        again = f"(one of {self._name(self._in[0][at], self._in[1][at])}, which could not be read again)"
        try:
            ref = self._corpus.sample(self._in[0][at], self._in[1][at])
            captions = captions_of(self._corpus.read(ref, list(CAPTION_EXTENSIONS)))
        except (DamagedMember, ValueError, OSError):
            return again
        return next((caption for caption in captions if _hash(caption) == self._texts[at]), again)

    def _name(self, shard: int, row: int) -> str:
        """Return a sample's name, or its place if its shard was replaced or removed during the check."""
        try:
            return self._corpus.sample(shard, row).name
        except (ValueError, OSError):
            return f"{without_secrets(self._corpus.shards[shard])}, sample {row + 1}"

    def _doubles(self) -> list[list[str]]:
        """Return groups of samples whose videos have the same bytes, in order of their first samples."""
        _, groups, counts = np.unique(np.frombuffer(self._digests, "V16"), return_inverse=True, return_counts=True)
        same: defaultdict[int, list[str]] = defaultdict(list)
        for at in np.flatnonzero(counts[groups] > 1).tolist():
            same[int(groups[at])].append(self._name(self._of[0][at], self._of[1][at]))
        return list(same.values())


def _append(places: tuple[array[int], array[int]], shard: int, row: int) -> None:
    places[0].append(shard)
    places[1].append(row)


def _hash(text: str) -> int:
    """Return a 64-bit hash: among 30 million captions, two collide by chance with a probability of 2e-5."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _quantiles(values: Iterable[float]) -> list[float]:
    found = np.fromiter(values, np.float64)
    return [round(float(value), 3) for value in np.quantile(found, QUANTILES)] if len(found) else []
