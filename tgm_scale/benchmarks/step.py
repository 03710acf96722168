"""Benchmark of a training step: a short run of the configuration in a temporary folder, and its own metrics."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tgm_scale import config as configuration
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.terminal import message


def run(options: argparse.Namespace) -> dict[str, Any]:
    if not 0 <= options.warm < options.steps:
        raise ValueError(f"--warm {options.warm}: wanted fewer than the --steps {options.steps}")
    if options.against:
        from tgm_scale.benchmarks import against

        config = configuration.load(options.config, options.overrides)
        described = f"{options.config} {' '.join(options.overrides)}"
        return against.run(config, options.steps, options.warm, described)
    from tgm_scale.training.pretraining import pretrain

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        given = [
            configuration.override("run.dir", folder),
            f"train.steps={options.steps}",
            "log.tensorboard=false",
            "log.wandb=null",
        ]
        config = configuration.load(options.config, [*options.overrides, *given])
        code = pretrain(config)
        assert code == 0, f"the run ended with exit code {code}"
        rows = read_metrics(folder)[options.warm :]
    figures = figures_of(rows)
    if torch.cuda.is_available():
        figures["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
    print(message(f"{headline()}; {options.config} {' '.join(options.overrides)}; medians of {len(rows)} steps"))
    print(table(("what", "figure"), [(name.replace("_", " "), f"{value:.4g}") for name, value in figures.items()]))
    return figures


def figures_of(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return seconds of the parts of a step; the rest after data and guidance is model, update and collectives."""
    parts = ("step_seconds", "data_seconds", "guidance_seconds")
    figures = {name: median(row[name] for row in rows) for name in parts}
    figures["model_seconds"] = median(
        row["step_seconds"] - row["data_seconds"] - row["guidance_seconds"] for row in rows
    )
    figures["clips_per_second"] = median(row["clips_per_second"] for row in rows)
    if "mfu" in rows[0]:
        figures["mfu"] = median(row["mfu"] for row in rows)
    return figures
