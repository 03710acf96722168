"""Figure of `tgm-scale benchmark growth`: one panel per question, with logarithmic axes for growth."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from tgm_scale.benchmarks.growth_start import PARTS
from tgm_scale.benchmarks.growth_tables import QUESTIONS, Question, Row, exponent, rows_of, spans

_COLOURS = ("#2a6fdb", "#e0662b", "#3d9a50", "#8a63d2", "#6b7280", "#b5489b", "#0e8794", "#c9a227")
_MEMORY = "#e0662b"
_LEAST = 4.0  # minimum ratio of a logarithmic axis's ends: a smaller one would show noise


def png(points: list[Row]) -> bytes:
    figure = Figure(figsize=(17.6, 7.6), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    axes = figure.subplots(2, 4).flat
    for name, question in QUESTIONS.items():
        _growing(next(axes), name, question, rows_of(points, name))
    _starts(next(axes), [row for row in points if row["question"] == "start" and row["name"] != "imports"])
    _workers(next(axes), [row["figures"] for row in points if row["question"] == "workers"])
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _growing(axis: Axes, name: str, question: Question, rows: list[Row]) -> None:
    axis.set_title(name, fontsize=11, loc="left")
    axis.set_xlabel(question.unit)
    axis.set_ylabel("seconds")
    if not rows:
        return
    figures = [figure for figure in question.figures if figure != "wall_seconds"]  # others may use the cores
    memory = [figure for figure in figures if figure.endswith("MB")]
    lines = _curves(axis, question, rows, [figure for figure in figures if figure not in memory])
    if memory:
        right = axis.twinx()
        right.set_ylabel("MB", color=_MEMORY)
        right.tick_params(axis="y", which="both", colors=_MEMORY)
        lines += _curves(right, question, rows, memory)
    axis.legend(handles=lines, fontsize=8, frameon=False, loc="upper left")


def _curves(axis: Axes, question: Question, rows: list[Row], figures: list[str]) -> list[Line2D]:
    """Plot figures, labelled with their exponents; for seconds also a dotted line of exponent 1 from the first
    point."""
    x = np.array([row[question.by] for row in rows], dtype=float)
    lines = []
    for number, figure in enumerate(figures):
        y = [row[figure] for row in rows]
        colour = _MEMORY if figure.endswith("MB") else _COLOURS[2 * number]
        words = f"{question.figures[figure]}, exponent {exponent(rows, question.by, figure):.2f}"
        lines += axis.plot(x, y, label=words, color=colour, marker="o", markersize=4)
    axis.set(xscale="log", yscale="log")
    low, high = axis.get_ylim()
    if high < _LEAST * low:
        low, high = low / _LEAST**0.5, high * _LEAST**0.5
    if figures[0].endswith("seconds"):
        lines += axis.plot(x, rows[0][figures[0]] * x / x[0], color="#9aa0a8", linestyle=":", label="exponent 1")
    axis.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
    if x[-1] < 1e5:
        axis.set_xticks(x, [f"{one:g}" for one in x], fontsize=8, rotation=45)
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())
    return lines


def _starts(axis: Axes, starts: list[Row]) -> None:
    axis.set_title("start to first step", fontsize=11, loc="left")
    axis.set_xlabel("seconds by the clock")
    names = [row["name"] for row in starts]
    left = np.zeros(len(starts))
    for part, colour in zip(PARTS, _COLOURS, strict=True):
        seconds = np.array([spans(row["figures"]["clock"])[part] for row in starts])
        axis.barh(names, seconds, left=left, color=colour, label=part, height=0.5)
        left += seconds
    if starts:
        axis.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _workers(axis: Axes, rows: list[dict[str, Any]]) -> None:
    axis.set_title("memory of trainer and data workers", fontsize=11, loc="left")
    axis.set_xlabel("data workers")
    axis.set_ylabel("private resident MB")
    names = [str(len(row["worker_MB"])) for row in rows]
    trainer = [row["trainer_MB"] for row in rows]
    axis.bar(names, trainer, color=_COLOURS[0], label="trainer", width=0.5)
    axis.bar(names, [sum(row["worker_MB"]) for row in rows], bottom=trainer, color=_COLOURS[2], label="all workers",
             width=0.5)  # fmt: skip
    if rows:
        axis.legend(fontsize=8, frameon=False)
