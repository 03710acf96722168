"""Curves and bar charts as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = ("#2a6fdb", "#e0662b", "#3d9a50", "#8a63d2", "#6b7280", "#b5489b")
_INK, _GRID = "#282c34", "#e5e7eb"
_DPI = 130


def _figure(panels: int, height: float = 3.0) -> tuple[Figure, list]:
    figure = Figure(figsize=(4.4 * panels, height), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for axis in axes:
        axis.grid(color=_GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8, colors=_INK)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def smoothed(values: Sequence[float], window: int) -> np.ndarray:
    """Return the running mean over the last `window` values (fewer at the start)."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (total[ends] - total[starts]) / (ends - starts)


Curve = tuple[Sequence[float], Sequence[float]]  # steps, values


def curves(panels: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """Plot panel title -> curve name -> (steps, values): each curve as its running mean over 2 % of it, over the faint
    single values."""
    figure, axes = _figure(len(panels))
    for axis, (title, lines) in zip(axes, panels.items()):
        for colour, (name, (steps, values)) in zip(cycle(_COLOURS), lines.items()):
            axis.plot(steps, values, color=colour, alpha=0.18, linewidth=0.7)
            axis.plot(steps, smoothed(values, max(1, len(values) // 50)), color=colour, linewidth=1.6, label=name)
        axis.set_title(title, fontsize=10, color=_INK, loc="left")
        axis.set_xlabel("step", fontsize=8, color=_INK)
        axis.legend(fontsize=8, frameon=False)
    return _png(figure)


def bars(title: str, groups: Mapping[str, Mapping[str, tuple[float, float]]]) -> bytes:
    """Plot group -> bar name -> (height, half of the error bar)."""
    figure, (axis,) = _figure(1)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for i, (colour, name) in enumerate(zip(cycle(_COLOURS), names)):
        places = [g + (i - (len(names) - 1) / 2) * width for g in range(len(groups))]
        heights = [group[name][0] for group in groups.values()]
        errors = [group[name][1] for group in groups.values()]
        axis.bar(places, heights, 0.92 * width, yerr=errors, color=colour, label=name, ecolor=_INK, capsize=2)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.grid(axis="x", visible=False)
    axis.set_title(title, fontsize=10, color=_INK, loc="left")
    axis.legend(fontsize=8, frameon=False)
    return _png(figure)
