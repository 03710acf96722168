"""Draws what the evaluations of a study have found against the cost of a pretraining step: a panel for each."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tgm_scale import config as configuration
from tgm_scale.commands.command import Once
from tgm_scale.config import StudyConfig
from tgm_scale.planning.run_plan import plan_pretraining
from tgm_scale.runtime import command
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.files import check_output, replacing
from tgm_scale.study.arms import Unit, units
from tgm_scale.study.summary import summarise

EXAMPLES = """examples:
  python tools/draw_cost.py --config configs/study/savings.yaml --output docs/savings.png
  python tools/draw_cost.py --config configs/study/savings.yaml run.dir=runs/mine --output savings.png

A dot is the mean over seeds, a bar their standard deviation; the line is untrained weights. The cost is the model's
multiply-accumulates of a clip's forward pass, by its configuration. Exit code: 0 done, 2 a mistake in the command, or
nothing to draw."""
_HERE = ProcessInfo(0, 1, 0, torch.device("cpu"))
_COLOURS = ("#2a6fdb", "#e0662b", "#3d9a50", "#8a63d2", "#b5489b", "#0e8794", "#c9a227", "#6b7280")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--config", action=Once, required=True, metavar="FILE", help="the study, with its runs where run.dir says")
    add("--output", type=Path, required=True, metavar="FILE.png", help="the picture; written over")
    add("overrides", nargs="*", metavar="section.key=value", help="laid over the file")
    options = parser.parse_args(arguments)
    return command.exit_code("draw_cost", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    check_output("--output", options.output, "picture")
    if options.output.suffix.lower() != ".png":
        raise ValueError(f"--output {options.output}: a PNG is drawn: name it .png")
    tree = configuration.read_tree(options.config, options.overrides)
    study = configuration.checked(tree, options.config, StudyConfig, options.overrides)
    found = units(study)
    summary = summarise(study, found, [])
    costs = {unit.arm.name: cost for unit in found if (cost := _giga(unit)) is not None}
    drawn = {name: of for name, of in summary["evaluations"].items() if _spreads(of).keys() & costs.keys()}
    if not drawn:
        raise ValueError(f"run.dir={study.run.dir}: no arm of the study has been evaluated there: run it first")
    with replacing(options.output) as file:
        file.write_bytes(_png(drawn, costs))
    print(options.output)
    return 0


def _giga(unit: Unit) -> float | None:
    """Multiply-accumulates of a clip, in 1e9; None for untrained weights."""
    origin = next((job.origin for job in unit.jobs if job.origin is not None), None)
    return None if origin is None else plan_pretraining(origin, _HERE).macs_per_clip / 1e9


def _spreads(evaluation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    spreads = {arm: of["figures"].get(evaluation["figure"]) for arm, of in evaluation["arms"].items()}
    return {arm: spread for arm, spread in spreads.items() if spread}


def _png(evaluations: dict[str, Any], costs: dict[str, float]) -> bytes:
    figure = Figure(figsize=(6.4 * len(evaluations), 4.4), layout="constrained")
    FigureCanvasAgg(figure)  # no window system is asked for
    axes = figure.subplots(1, len(evaluations), squeeze=False)[0]
    for axis, (name, evaluation) in zip(axes, evaluations.items()):
        _panel(axis, name, evaluation, costs)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _panel(axis: Axes, name: str, evaluation: dict[str, Any], costs: dict[str, float]) -> None:
    axis.set_title(name, fontsize=11, loc="left")
    axis.set_xlabel("1e9 multiply-accumulates of a clip's forward pass")
    axis.set_ylabel(evaluation["figure"])
    beside = 0.01 * max(costs.values())  # of dots at the same cost
    at: list[float] = []
    for number, (arm, spread) in enumerate(_spreads(evaluation).items()):
        mean, deviation, colour = spread["mean"], spread["deviation"] or 0.0, _COLOURS[number % len(_COLOURS)]
        if arm in costs:
            at.append(costs[arm])
            axis.errorbar(
                costs[arm] + beside * (at.count(costs[arm]) - 1),
                mean,
                deviation,
                fmt="o",
                color=colour,
                capsize=3,
                label=arm,
            )
        else:
            axis.axhline(mean, color=colour, linestyle="--", label=arm)
            axis.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlim(left=0)
    axis.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    sys.exit(main())
