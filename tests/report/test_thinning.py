"""Curves: bins that lose no spike, gaps, marks of an axis."""

from __future__ import annotations

import numpy as np
import pytest

from tgm_scale.report.chart import Curve, Panel, ticks
from tgm_scale.report.thinning import Series, thinned


def test_thinning_keeps_the_lowest_and_the_highest_of_every_bin() -> None:
    count, bins = 10_000, 50
    values = np.random.default_rng(0).normal(size=count)
    values[4321], values[8765] = 99.0, -99.0
    series = Series(np.arange(1.0, count + 1), values)
    thin = thinned(series, 0.0, count, bins)
    [drawn], [means] = thin.drawn, thin.means
    assert len(drawn) <= 2 * bins + 2 and len(means) == bins
    for number in range(bins):
        inside = (series.steps / count * bins).clip(0, bins - 1).astype(int) == number
        shown = [value for step, value in drawn if int(min(step / count * bins, bins - 1)) == number]
        assert min(shown) == values[inside].min() and max(shown) == values[inside].max()
    assert (4322.0, 99.0) in drawn and (8766.0, -99.0) in drawn
    assert [step for step, _ in drawn] == sorted(step for step, _ in drawn)


def test_a_value_that_is_not_finite_breaks_the_line_and_is_marked() -> None:
    series = Series(np.arange(1.0, 101), np.where(np.arange(100) == 50, np.nan, 1.0 + np.arange(100)))
    drawn = Panel([Curve(series, 0)]).svg("x")
    assert drawn.count("<polyline") == 2 and drawn.count('class="lost"') == 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 1e6), (1e-9, 2e-9), (-1e300, 1e300), (7, 7.001)])
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert len(found) <= 6 and all(low <= one <= high * (1 + 1e-9) for one in found)
