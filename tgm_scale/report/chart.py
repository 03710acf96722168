"""A panel of curves as an SVG, in the page's colours, for any width and theme."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tgm_scale.report.thinning import Points, Series, thinned

WIDTH, HEIGHT = 380, 208
COLOURS = 6  # in the style sheet; further curves repeat them, dashed
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 8, 12, 22
_TICKS = 4
_ONE_SIDED = 30  # ratio of largest value to median from which the axis is logarithmic
_BEYOND = 1e300  # drawn as not finite: spans of such values overflow floats
_EQUAL = 1e-200  # values this close count as equal: their ticks would underflow floats
_DOTS = 40  # most points for which each gets a dot
_MARKS = 400  # at most, of one kind
_FROM_ZERO = 0.02  # share of the last step: an axis that begins below it begins at 0

STYLE = """
  .cards { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); } .card b { font-size: 22px; }
  .legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 10px 0; color: var(--soft); font-size: 14px; }
  .swatch { display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle; }
  .panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: 22px 26px;
            margin: 18px 0 10px; }
  .panel h3 { font-size: 15px; margin: 0; } .panel p { font-size: 13px; margin: 2px 0; color: var(--soft); }
  .panel svg { display: block; width: 100%; height: auto; overflow: visible; }
  .panel text { fill: var(--soft); font: 12px system-ui, sans-serif; }
  .panel .ends { font-variant-numeric: tabular-nums; }
  .axis { stroke: var(--line); stroke-width: 1; } .start { stroke: var(--soft); stroke-width: 1; opacity: .45; }
  .chance { stroke: var(--soft); stroke-width: 1.2; stroke-dasharray: 5 4; }
  .refused { stroke: var(--bad); stroke-width: 1.6; } .lost { fill: var(--bad); }
  .line { fill: none; stroke-width: 1.5; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
  .faint { fill: none; stroke-width: 1; opacity: .38; stroke-linejoin: round; vector-effect: non-scaling-stroke; }
  .c0 { stroke: var(--c0); color: var(--c0); } .c1 { stroke: var(--c1); color: var(--c1); }
  .c2 { stroke: var(--c2); color: var(--c2); } .c3 { stroke: var(--c3); color: var(--c3); }
  .c4 { stroke: var(--c4); color: var(--c4); } .c5 { stroke: var(--c5); color: var(--c5); }
  .dashed { stroke-dasharray: 4 3; } .swatch.dashed { border-top-style: dashed; }
  .dot { stroke: none; fill: currentColor; }
  :root { --c0: #2a6fdb; --c1: #d4581c; --c2: #2f8a45; --c3: #8054d0; --c4: #0e8794; --c5: #b5489b; }
  @media (prefers-color-scheme: dark) {
    :root { --c0: #6ea6ff; --c1: #ff9a62; --c2: #6fcf87; --c3: #b79bff; --c4: #55c7d3; --c5: #ee8fd6; }
  }
"""


@dataclass(frozen=True)
class Curve:
    """A curve of one run.

    colour: number of the run. starts: steps before which a start began. refused: steps whose update was refused."""

    series: Series
    colour: int
    starts: Sequence[int] = ()
    refused: Sequence[int] = ()


@dataclass(frozen=True)
class Axes:
    """Range of a panel; `x` and `y` map a value to units of the SVG."""

    first: float
    last: float
    low: float
    high: float
    log: bool = False

    def x(self, step: float) -> float:
        return _LEFT + (step - self.first) / (self.last - self.first) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        low, high, at = (math.log10(one) if self.log else one for one in (self.low, self.high, value))
        return _TOP + (high - at) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


@dataclass(frozen=True)
class Panel:
    """The curves of one metric. chance: values at which chance is drawn; words: formats a value for ticks and ends."""

    curves: Sequence[Curve]
    chance: Sequence[float] = ()
    words: Callable[[float], str] = field(default=lambda value: short(value))
    from_zero: bool = False

    def axes(self) -> Axes | None:
        """Return the axes; None if no value is finite."""
        finite = [_drawable(curve.series).finite for curve in self.curves]
        if not any(map(len, finite)):
            return None
        values = np.concatenate([one.values for one in finite])
        steps = np.concatenate([curve.series.steps for curve in self.curves])
        first, last = float(steps.min()), float(steps.max())
        first = 0.0 if 0 <= first <= max(1.0, _FROM_ZERO * last) else first
        low, high = (float(end) for end in (min([values.min(), *self.chance]), max([values.max(), *self.chance])))
        log = low > 0 and high > _ONE_SIDED * float(np.median(values)) and not self.from_zero
        if self.from_zero:
            low = min(low, 0.0)
        if log:
            low, high = low / 1.1, high * 1.1
        elif high - low <= max(1e-9 * max(abs(high), abs(low)), _EQUAL):
            spread = abs(high) * 0.05 if abs(high) > _EQUAL else 1.0
            low, high = low - spread * (not self.from_zero or low < 0), high + spread
        else:
            low, high = low - (high - low) * 0.04 * (low != 0), high + (high - low) * 0.04
        return Axes(first, max(last, first + 1), low, high, log)

    def svg(self, label: str) -> str:
        """Return the panel as an SVG. label: its description, escaped."""
        axes = self.axes()
        head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        if axes is None:
            return f'{head}<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no value is finite</text></svg>'
        parts = [head, *self._grid(axes)]
        parts += [_across(axes, value, "chance") for value in self.chance]
        for curve in self.curves:
            parts += _drawn(curve, axes)
        return "".join([*parts, "</svg>"])

    def _grid(self, axes: Axes) -> list[str]:
        parts = []
        for value in ticks(axes.low, axes.high, axes.log):
            parts.append(_across(axes, value, "axis"))
            parts.append(
                f'<text x="{_LEFT - 6}" y="{axes.y(value) + 4:.1f}" text-anchor="end">{self.words(value)}</text>'
            )
        for step in ticks(axes.first, axes.last, whole=True):
            anchor = "end" if axes.x(step) > WIDTH - 24 else "middle"
            parts.append(f'<text x="{axes.x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{short(step)}</text>')
        return parts


def ticks(low: float, high: float, log: bool = False, whole: bool = False) -> list[float]:
    """Return three to six round values between two; `whole`: no fractions."""
    if log:
        first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
        if last > first:
            stride = -(-(last - first) // _TICKS)
            return [10.0**power for power in range(first, last + 1, stride)]
    raw = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * times for times in (1, 2, 2.5, 5, 10) if power * times >= raw * 0.999)
    if whole:
        step = float(math.ceil(step))
    begin, end = math.ceil(low / step), math.floor(high / step)
    return [number * step for number in range(begin, end + 1)]


def short(value: float) -> str:
    """Format a number in about six letters: 20k, 1.5M, 0.0001, 3e-07."""
    size = abs(value)
    for letter, unit in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if unit * (10 if letter == "k" else 1) <= size < 1e12:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    return f"{value * 100:.3g}%"


def classes(colour: int) -> str:
    """Return the style sheet's classes for a run's number."""
    return f"c{colour % COLOURS}" + (" dashed" if colour // COLOURS % 2 else "")


def _drawable(series: Series) -> Series:
    return Series(series.steps, np.where(np.abs(series.values) < _BEYOND, series.values, np.nan))


def _drawn(curve: Curve, axes: Axes) -> list[str]:
    series = _drawable(curve.series)
    thin = thinned(series, axes.first, axes.last)
    style = classes(curve.colour)
    parts = _upright(axes, curve.starts, "start", _TOP, HEIGHT - _BOTTOM)
    parts += _upright(axes, curve.refused, "refused", HEIGHT - _BOTTOM - 8, HEIGHT - _BOTTOM)
    for kind, lines in (("faint" if thin.means else "line", thin.drawn), ("line", thin.means)):
        parts += [
            f'<polyline class="{kind} {style}" points="{_path(line, axes)}"/>' for line in lines if len(line) > 1
        ]
    few = [*(line[0] for line in thin.drawn if len(line) == 1)]
    if len(series) <= _DOTS:
        few = [point for line in thin.drawn for point in line]
    parts += [_dot(axes.x(step), axes.y(value), f"dot {style}") for step, value in few]
    lost = _places(axes, series.steps[~np.isfinite(series.values)].tolist())
    return parts + [f'<path class="lost" d="M{x:.1f} {_TOP - 2}l-3 -6h6z"/>' for x in lost]


def _path(points: Points, axes: Axes) -> str:
    return " ".join(f"{axes.x(step):.1f},{axes.y(value):.1f}" for step, value in points)


def _dot(x: float, y: float, style: str) -> str:
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>'


def _across(axes: Axes, value: float, style: str) -> str:
    return f'<path class="{style}" d="M{_LEFT} {axes.y(value):.1f}H{WIDTH - _RIGHT}"/>'


def _upright(axes: Axes, steps: Sequence[int], style: str, top: float, bottom: float) -> list[str]:
    return [f'<path class="{style}" d="M{x:.1f} {top}V{bottom}"/>' for x in _places(axes, steps)]


def _places(axes: Axes, steps: Sequence[float]) -> list[float]:
    """Return the positions of marks at steps, each once, at most one per unit."""
    inside = {round(axes.x(step)): axes.x(step) for step in steps if axes.first <= step <= axes.last}
    return [inside[place] for place in sorted(inside)][:_MARKS]
