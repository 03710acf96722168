"""Draws what a study has found against the cost of a pretraining step, or over the share of labels."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.commands.command import Once
from tgm_scale.config import RunSettings, StudyConfig
from tgm_scale.evaluation.settings import FinetuneConfig, FrozenConfig
from tgm_scale.runtime import command
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.files import check_output, replacing
from tgm_scale.study.arms import PRETRAIN, UNTRAINED, Unit, units
from tgm_scale.study.summary import summarise

EXAMPLES = """examples:
  python tools/draw_study.py --against cost --config configs/study/savings.yaml --output docs/savings.png
  python tools/draw_study.py --against labels --config configs/study/utd_mhad_words.yaml --output docs/labels.png
  python tools/draw_study.py --against labels --config mine.yaml --output labels.png run.dir=runs/mine

cost: a panel of each evaluation. The cost is the model's multiply-accumulates of a clip's forward pass, by its
configuration; the line is untrained weights. labels: a panel of evaluations whose names differ in an ending such as
_30, which are drawn over their data.share. A dot is the mean over seeds, a bar their standard deviation. Exit code:
0 done, 2 a mistake in the command, or nothing to draw."""
_HERE = ProcessInfo(0, 1, 0, torch.device("cpu"))
_COLOURS = ("#2a6fdb", "#e0662b", "#3d9a50", "#8a63d2", "#b5489b", "#0e8794", "#c9a227", "#6b7280")
_UNTRAINED = "#111827"
Spreads = dict[str, dict[str, Any]]  # spread of an evaluation's figure, by arm


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--against", choices=_WAYS, required=True, help="what lies along the horizontal axis")
    add("--config", action=Once, required=True, metavar="FILE", help="the study, with its runs where run.dir says")
    add("--output", type=Path, required=True, metavar="FILE.png", help="the picture; written over")
    add("overrides", nargs="*", metavar="section.key=value", help="laid over the file")
    options = parser.parse_args(arguments)
    return command.exit_code("draw_study", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    check_output("--output", options.output, "picture")
    if options.output.suffix.lower() != ".png":
        raise ValueError(f"--output {options.output}: a PNG is drawn: name it .png")
    tree = configuration.read_tree(options.config, options.overrides)
    study = configuration.checked(tree, options.config, StudyConfig, options.overrides)
    found = units(study)
    summary = summarise(study, found, [])
    spreads = {name: of for name, one in summary["evaluations"].items() if (of := _spreads(one))}
    draw, lacking = _WAYS[options.against]
    panels = draw(found, spreads)
    if not panels:
        lacking = lacking if spreads else "no arm of the study has been evaluated there: run it first"
        raise ValueError(f"run.dir={study.run.dir}: {lacking}")
    figures = {name: one["figure"] for name, one in summary["evaluations"].items()}
    with replacing(options.output) as file:
        file.write_bytes(_png(panels, figures))
    print(options.output)
    return 0


def _spreads(evaluation: dict[str, Any]) -> Spreads:
    spreads = {arm: of["figures"].get(evaluation["figure"]) for arm, of in evaluation["arms"].items()}
    return {arm: spread for arm, spread in spreads.items() if spread}


def _costs(found: list[Unit], spreads: dict[str, Spreads]) -> dict[str, Callable[[Axes], None]]:
    """Return a drawing function per evaluation."""
    costs = {unit.arm.name: cost for unit in found if (cost := _giga(unit)) is not None}
    return {name: partial(_against_cost, of, costs) for name, of in spreads.items() if of.keys() & costs.keys()}


def _giga(unit: Unit) -> float | None:
    """Return the multiply-accumulates per clip, in 1e9; None for untrained weights."""
    origin = next((job.origin for job in unit.jobs if job.origin is not None), None)
    return None if origin is None else plan_pretraining(origin, _HERE).macs_per_clip / 1e9


def _against_cost(spreads: Spreads, costs: dict[str, float], axis: Axes) -> None:
    axis.set_xlabel("1e9 multiply-accumulates of a clip's forward pass")
    beside = 0.01 * max(costs.values())  # shift of dots with the same cost
    at: list[float] = []
    for number, (arm, spread) in enumerate(spreads.items()):
        mean, deviation, colour = spread["mean"], spread["deviation"] or 0.0, _COLOURS[number % len(_COLOURS)]
        if arm in costs:
            at.append(costs[arm])
            place = costs[arm] + beside * (at.count(costs[arm]) - 1)
            axis.errorbar(place, mean, deviation, fmt="o", color=colour, capsize=3, label=arm)
        else:
            axis.axhline(mean, color=colour, linestyle="--", label=arm)
            axis.axhspan(mean - deviation, mean + deviation, color=colour, alpha=0.12, linewidth=0)
    axis.set_xlim(left=0)


def _labels(found: list[Unit], spreads: dict[str, Spreads]) -> dict[str, Callable[[Axes], None]]:
    """Return a drawing function per common name of evaluations of one command that differ in their share of labels.
    Raises ValueError where two have the same share."""
    jobs = {job.what: job for unit in found for job in unit.jobs if job.what != PRETRAIN}
    curves: defaultdict[tuple[str, str], list[tuple[float, str]]] = defaultdict(list)
    for name in spreads:
        curves[re.sub(r"_\d+$", "", name), jobs[name].arguments[0]].append((_share(jobs[name].config), name))
    panels: dict[str, Callable[[Axes], None]] = {}
    for curve in curves.values():
        at = {share: name for share, name in curve}
        if len(at) > 1 and len(at) < len(curve):
            names = ", ".join(name for _, name in curve)
            raise ValueError(f"study.evaluations: of {names} two have the same data.share: rename one")
        if len(at) > 1:
            panels[min(at.values(), key=len)] = partial(_over_labels, {share: spreads[at[share]] for share in at})
    return panels


def _share(config: RunSettings) -> float:
    assert isinstance(config, FrozenConfig | FinetuneConfig)
    return config.data.share


def _over_labels(curve: dict[float, Spreads], axis: Axes) -> None:
    axis.set_xlabel("share of the labels")
    axis.set_xscale("log")
    axis.set_xticks(sorted(curve), [f"{share:.3g}" for share in sorted(curve)])
    axis.set_xticks([], minor=True)
    arms = list(dict.fromkeys(arm for spreads in curve.values() for arm in spreads))
    for number, arm in enumerate(arms):
        shares = sorted(share for share in curve if arm in curve[share])
        beside = [share * 1.02 ** (number - len(arms) / 2) for share in shares]  # else the bars would overlap
        of = [curve[share][arm] for share in shares]
        means, deviations = [one["mean"] for one in of], [one["deviation"] or 0.0 for one in of]
        colour = _UNTRAINED if arm == UNTRAINED else _COLOURS[number % len(_COLOURS)]
        axis.errorbar(beside, means, deviations, fmt="o-", color=colour, capsize=3, label=arm)


def _png(panels: dict[str, Callable[[Axes], None]], figures: dict[str, str]) -> bytes:
    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained")
    FigureCanvasAgg(figure)  # needs no window system
    for axis, (name, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        axis.set_title(name, fontsize=11, loc="left")
        axis.set_ylabel(figures[name])
        draw(axis)
        axis.legend(fontsize=8, frameon=False)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


_WAYS = {  # drawing function, and the reason if there is nothing to draw
    "cost": (_costs, "no pretraining has been evaluated"),
    "labels": (_labels, "no two evaluations differ in data.share"),
}

if __name__ == "__main__":
    sys.exit(main())
