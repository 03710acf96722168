"""HTML page of a study: a plot and a table for each evaluation, failures, and the commands."""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import StudyConfig
from tgm_scale.report import chart
from tgm_scale.report.html import Code, Drawn, Report, Section, Table, Text, render
from tgm_scale.runtime.progress import clock
from tgm_scale.runtime.terminal import message, tree_without_secrets
from tgm_scale.study.arms import Unit
from tgm_scale.study.summary import effect_rows, rows

_WIDTH, _LEFT, _RIGHT, _LINE, _FOOT = 760, 190, 20, 26, 24
_STYLE = "  .spread { width: 100%; max-width: 900px; } .spread text { fill: var(--soft); font: 13px system-ui; }\n"


def page(study: StudyConfig, units: Sequence[Unit], summary: dict[str, Any]) -> str:
    """Return the page as self-contained HTML."""
    seeds = ", ".join(map(str, summary["seeds"]))
    note = Text(
        "Dots are seeds, the stroke is their mean. A difference is of the same seeds and test clips; its interval is "
        "a paired bootstrap over seeds and clips (and over seeds and groups, where the clips have groups). Below, "
        "objectives and maskers are compared as a whole, by the mean over their arms."
    )
    sections = [Section("How to read it", [note])]
    for name, evaluation in summary["evaluations"].items():
        head, *cells = rows(evaluation)
        shown: list[Drawn | Table | Text] = [
            Drawn(plot(evaluation)),
            Table(head, cells, words=True),
            Text(evaluation["basis"]),
            *(Text(message(f"warning: {said}")) for said in evaluation["cautions"]),
        ]
        if whole := effect_rows(evaluation):
            shown.append(Table(whole[0], whole[1:], words=True))
        sections.append(Section(f"{name}: {evaluation['figure']}", tuple(shown)))
    commands = [
        message(shlex.join(["tgm-scale", *job.arguments]))
        for unit in units[: len(units) // len(summary["seeds"])]
        for job in unit.jobs
    ]
    tree = tree_without_secrets(study.model_dump(mode="json"))
    sections += [
        Section("The commands of the first seed", [Code("\n".join(commands))]),
        Section("The study", [Code(configuration.to_yaml(tree))]),
    ]
    lead = f"{len(units)} runs with the seeds {seeds}, {clock(summary['seconds'])} of commands in all."
    return render(Report(study.run.dir, lead, sections, style=chart.STYLE + _STYLE))


def plot(evaluation: dict[str, Any]) -> str:
    """Return an SVG: a line for each arm with a dot for each seed and a stroke at the mean."""
    spreads = {arm: of["figures"].get(evaluation["figure"]) for arm, of in evaluation["arms"].items()}
    values = [value for spread in spreads.values() if spread for value in spread["of each"]]
    if not values:
        return ""
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.005)
    low, high = low - margin, high + margin
    height = _LINE * len(spreads) + _FOOT

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    parts = [f'<svg class="spread" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="each seed of each arm">']
    for value in chart.ticks(low, high):
        parts.append(f'<path class="axis" d="M{x(value):.1f} 0V{height - _FOOT}"/>')
        parts.append(f'<text x="{x(value):.1f}" y="{height - 6}" text-anchor="middle">{chart.short(value)}</text>')
    for number, (arm, spread) in enumerate(spreads.items()):
        middle = _LINE * (number + 0.5)
        style = chart.classes(number)
        parts.append(f'<text x="{_LEFT - 10}" y="{middle + 4:.1f}" text-anchor="end">{html.escape(arm)}</text>')
        for value in spread["of each"] if spread else ():
            parts.append(f'<circle class="dot {style}" cx="{x(value):.1f}" cy="{middle:.1f}" r="4" opacity=".6"/>')
        if spread:
            parts.append(f'<path class="line {style}" d="M{x(spread["mean"]):.1f} {middle - 9:.1f}v18"/>')
    return "".join([*parts, "</svg>"])
