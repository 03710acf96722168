"""Order of the candidates to try, which depends on earlier outcomes.

First the configuration as given. Then, for each way (ZeRO stage, checkpointing), micro batches by doubling from the
configuration's own, or by halving where that does not fit, and bisection between sizes that fit and sizes that do not.
With the fastest so far, compilation and the attention kernel. Then ways with offload, which are slower wherever
another fits; and last, with the fastest, data workers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from tgm_scale.tuning.trials import Candidate

_SLOWER = 0.95  # of the speed of the previous micro batch: below this, larger ones are not tried


@dataclass
class Search:
    """Search over candidates. ways: candidates whose micro batch is still open. micros: divisors of the batch,
    ascending. given: whether the user named them, so that all are tried. outcomes: by name, filled by the caller after
    each candidate."""

    first: Candidate
    ways: list[Candidate]
    micros: list[int]
    given: bool
    variants: list[dict[str, Any]]
    outcomes: dict[str, dict[str, Any]]
    _tried: list[Candidate] = field(default_factory=list)

    def __iter__(self) -> Iterator[Candidate]:
        seen = set()
        for candidate in self._all():
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def _all(self) -> Iterator[Candidate]:
        yield from self._noted([self.first])
        yield from self._noted(self._micro_batches(offloaded=False))
        yield from self._noted(self._varied("compile", "attention"))
        yield from self._noted(self._micro_batches(offloaded=True))
        yield from self._varied("workers")

    def _noted(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        for candidate in candidates:
            self._tried.append(candidate)
            yield candidate

    def _micro_batches(self, offloaded: bool) -> Iterator[Candidate]:
        for way in self.ways:
            if (way.offload != "none") == offloaded:
                for micro in self.micros if self.given else self._micros(way):
                    yield replace(way, micro=micro)

    def _varied(self, *kinds: str) -> Iterator[Candidate]:
        """Yield the fastest candidate so far, with one setting changed."""
        ran = [candidate for candidate in self._tried if self._speed(candidate)]
        if ran:
            best = max(ran, key=self._speed)
            for change in self.variants:
                if change.keys() & set(kinds) and (change.get("compile") is None or best.stage < 3):
                    yield replace(best, **change)

    def _speed(self, candidate: Candidate) -> float:
        """Return clips per second; 0 where the candidate did not run."""
        return self.outcomes.get(candidate.name, {}).get("clips_per_second", 0.0)

    def _micros(self, way: Candidate) -> Iterator[int]:
        """Yield micro batches, each once the outcome of the previous one is known."""

        def speed(at: int) -> float:
            return self._speed(replace(way, micro=self.micros[at]))

        at = max(0, bisect_right(self.micros, self.first.micro) - 1)
        yield self.micros[at]
        fits, unfit = (at, len(self.micros)) if speed(at) else (-1, at)
        while fits >= 0 and unfit == len(self.micros):  # double
            larger = bisect_left(self.micros, 2 * self.micros[fits])
            if larger == len(self.micros):
                return
            yield self.micros[larger]
            if not speed(larger):
                unfit = larger
            elif speed(larger) < _SLOWER * speed(fits):
                return
            else:
                fits = larger
        while fits < 0 < unfit:  # halve
            smaller = max(0, bisect_right(self.micros, self.micros[unfit] // 2) - 1)
            yield self.micros[smaller]
            fits, unfit = (smaller, unfit) if speed(smaller) else (-1, smaller)
        while 0 <= fits < unfit - 1:
            middle = (fits + unfit) // 2
            yield self.micros[middle]
            fits, unfit = (middle, unfit) if speed(middle) else (fits, middle)
