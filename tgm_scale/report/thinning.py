"""Thinning of long curves to few points without hiding an extreme: each bin keeps its lowest and highest value.

Shapes: N values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BINS = 320  # about one per pixel of a panel on a page

Points = list[tuple[float, float]]  # step, value


@dataclass(frozen=True)
class Series:
    """A metric by step. steps: float64 [N], ascending; values: float64 [N], NaN where not finite."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def finite(self) -> Series:
        kept = np.isfinite(self.values)
        return Series(self.steps[kept], self.values[kept])


@dataclass(frozen=True)
class Thinned:
    """A thinned curve.

    drawn: stretches between values that were not finite, each with the lowest and the highest value of every bin, by
    step. means: of each bin; none if every value is drawn."""

    drawn: list[Points]
    means: list[Points]


def thinned(series: Series, first: float, last: float, bins: int = _BINS) -> Thinned:
    """Thin a series. first, last: the steps that the bins divide."""
    stretches = _stretches(series)
    if len(series) <= 2 * bins:
        return Thinned([_points(one) for one in stretches], [])
    drawn, means = [], []
    for one in stretches:
        number_N = np.floor((one.steps - first) / max(last - first, 1) * bins).clip(0, bins - 1).astype(np.int64)
        starts = np.flatnonzero(np.diff(number_N, prepend=-1)).tolist()
        kept: list[int] = []
        middle: Points = []
        for begin, end in zip(starts, [*starts[1:], len(one)]):
            inside = one.values[begin:end]
            kept += [begin + int(inside.argmin()), begin + int(inside.argmax())]
            middle.append((float(one.steps[begin:end].mean()), float(inside.mean())))
        places = sorted({0, *kept, len(one) - 1})
        drawn.append(_points(Series(one.steps[places], one.values[places])))
        means.append(middle)
    return Thinned(drawn, means)


def _stretches(series: Series) -> list[Series]:
    """Return the stretches between the values that were not finite."""
    cuts = np.flatnonzero(~np.isfinite(series.values))
    parts = zip(np.split(series.steps, cuts), np.split(series.values, cuts))
    return [one for one in (Series(steps, values).finite for steps, values in parts) if len(one)]


def _points(series: Series) -> Points:
    return list(zip(series.steps.tolist(), series.values.tolist()))
