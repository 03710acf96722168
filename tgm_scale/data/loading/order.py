"""Mapping from positions of the run to samples: pure arithmetic, no state.

Position p (0, 1, 2, ...) belongs to epoch p // N. In each epoch the shards are permuted, and so are the samples
within each window of consecutive permuted shards: each sample occurs once an epoch, and reads that are close in
time are close on disk. The sample follows from (seed, p) alone, on any rank, in any worker, in any later run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import lcm
from typing import Any, NamedTuple

import numpy as np

from tgm_scale.runtime import seeding

_REMEMBERED = 4  # epochs and windows kept: a batch may straddle two of each, and workers are ahead of it


class SampleAddress(NamedTuple):
    """Sample that a position of the run refers to."""

    corpus: int
    epoch: int
    shard: int
    row: int


class _Memo:
    """Cache of the last few results of a pure function; they are cheap to recompute and so never pickled."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.results: dict[tuple[int, ...], Any] = {}

    def __call__(self, *key: int) -> Any:
        if key not in self.results:
            if len(self.results) == _REMEMBERED:
                del self.results[next(iter(self.results))]
            self.results[key] = self.function(*key)
        return self.results[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"function": self.function, "results": {}}


class Order:
    """Order of one corpus. Takes O(shards + samples of a window) memory whatever the length of the run.

    counts: samples in each shard, int64 [shards]; `seed` keys every permutation; `window_shards` shards are
    shuffled together. Raises ValueError where the corpus holds no sample."""

    def __init__(self, counts: np.ndarray, seed: int, window_shards: int):
        if window_shards < 1:
            raise ValueError(f"data.window_shards={window_shards}: a window holds at least 1 shard")
        self.counts = np.asarray(counts, dtype=np.int64)
        self.length = int(self.counts.sum())
        if self.length == 0:
            raise ValueError(f"the corpus is empty: {len(self.counts)} shards hold 0 samples")
        self.seed = seed
        self.window_shards = window_shards
        self._epoch = _Memo(self._permute_shards)
        self._window = _Memo(self._permute_window)

    def locate(self, position: int) -> tuple[int, int, int]:
        """Return (epoch, shard, row) of the sample at `position`: row counts from 0 within the shard."""
        epoch, offset = divmod(int(position), self.length)
        _, window_starts = self._epoch(epoch)
        window = int(window_starts.searchsorted(offset, side="right")) - 1
        shards, shard_starts, samples = self._window(epoch, window)
        sample = samples[offset - window_starts[window]]
        place = int(shard_starts.searchsorted(sample, side="right")) - 1
        return epoch, int(shards[place]), int(sample - shard_starts[place])

    def _permute_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's shards in order, and the offset at which each window of them begins."""
        shards = seeding.permutation(seeding.key(self.seed, "shards", epoch), len(self.counts))
        return shards, _starts(self.counts[shards])[:: self.window_shards]

    def _permute_window(self, epoch: int, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the window's shards, the start of each among the window's samples, and those samples in order."""
        first = window * self.window_shards
        shards = self._epoch(epoch)[0][first : first + self.window_shards]
        counts = self.counts[shards]
        key = seeding.key(self.seed, "window", epoch, window)
        return shards, _starts(counts), seeding.permutation(key, int(counts.sum()))


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(counts)[:-1]))


class Mixture:
    """Interleaving of several corpora by weight, each with its own position.

    Weights are shares of the samples: over a cycle (the least number of positions in which all shares are whole)
    each corpus gets its exact share, evenly spread. Default: by length, so that all corpora end their epochs
    together. Raises ValueError for a weight that is not positive, or where the numbers of weights and corpora
    differ."""

    def __init__(self, orders: Sequence[Order], weights: Sequence[float] | None = None):
        if weights is not None and len(weights) != len(orders):
            raise ValueError(f"data.weights has {len(weights)} entries for {len(orders)} corpora: give one for each")
        self.orders = list(orders)
        shares = [Fraction(str(weight)) for weight in (weights or [order.length for order in orders])]
        if any(share <= 0 for share in shares):
            raise ValueError(f"data.weights={weights}: a weight must be above 0 (leave the corpus out instead)")
        # For each corpus i, its share among corpora i, i + 1, ... (the last one's is 1) and the phase of its turns, as
        # integers over a common denominator: fractions would take half of the time of a position.
        self._lines = []
        for i, share in enumerate(shares):
            share, phase = share / sum(shares[i:]), _phase(i + 1)
            whole = lcm(share.denominator, phase.denominator)
            self._lines.append((int(share * whole), int(phase * whole), whole))

    def locate(self, position: int) -> SampleAddress:
        """Return the sample at `position` of the run."""
        corpus, position = self.turn(position)
        return SampleAddress(corpus, *self.orders[corpus].locate(position))

    def turn(self, position: int) -> tuple[int, int]:
        """Return (corpus, its own position): the corpus whose turn `position` of the run is, and how many turns it had
        before.

        A corpus of share s takes the turns at which floor(p * s + phase) grows, as a line is drawn on a pixel grid
        (Bresenham 1965); the remaining turns are distributed among the other corpora in the same way. Exact in
        rational numbers, O(corpora) per position, without set-up."""
        for corpus, (share, phase, whole) in enumerate(self._lines):
            before = (position * share + phase) // whole
            if ((position + 1) * share + phase) // whole > before:
                return corpus, before
            position -= before
        raise AssertionError("the last share is 1, which takes every turn")


def _phase(number: int) -> Fraction:
    """Return 1/2, 1/4, 3/4, 1/8, ...: spreads any number of equal turns evenly (van der Corput 1935)."""
    return Fraction(int(f"{number:b}"[::-1], 2), 1 << number.bit_length())
