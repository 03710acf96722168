"""Report of `plan --fit`: the sizes that fit, the largest in figures, what saves time, and commands to paste."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import Config
from tgm_scale.planning import estimate
from tgm_scale.planning.fit import Choice, Wanted, choices, largest, savings_of
from tgm_scale.planning.machine import Machine

_CORES = 12  # per task: without it srun gives one core to a rank and all its data workers
_SCRIPTS = {f"pretrain_vit{size}" for size in "blhg"}  # of slurm/, each for the configuration of its name


def report(wanted: Wanted, given: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the report as text and as a tree for JSON. given: the configuration's file and the user's overrides, as a
    command takes them.

    Raises ValueError where nothing fits."""
    found = choices(wanted)
    chosen = largest(found)
    figures = estimate.figures(chosen.query, wanted.machine)
    saved = [(one, choices(_of_size(wanted, chosen.size), one)[0]) for one in savings_of(wanted, chosen.size)]
    lines = [
        _headline(wanted.machine),
        "",
        *_table([_row(choice) for choice in found]),
        "hours: model, frozen towers and network; without waits for data and what offload copies",
        "",
        f"largest that fits{_without_offload(chosen)}: {chosen.size} ({chosen.strategy.summary})",
        estimate.lines(figures),
        "",
        "start it with this, and your own folders. ZeRO stage, activation checkpointing, "
        "offload and micro batch leave the losses as they are (docs/SCALING.md):",
        *_command(given, chosen),
        *_own_recipe(given, chosen),
        *_other_batch(wanted, chosen),
    ]
    if saved:
        lines += ["", "less time, but it changes what is learned (docs/RECIPES.md):", *_table(_saved(chosen, saved))]
        lines += _command(given, saved[-1][1])
    tree = {
        "machine": _tree_of_machine(wanted.machine),
        "sizes": [_tree(choice) for choice in found],
        "largest": {**_tree(chosen), "figures": estimate.tree(figures)},
        "savings": [{"changes_learning": list(one), **_tree(choice)} for one, choice in saved],
    }
    return "\n".join(lines), tree


def _without_offload(chosen: Choice) -> str:
    return " without offload" if chosen.strategy.offload == "none" else ""


def _of_size(wanted: Wanted, size: str) -> Wanted:
    return Wanted(wanted.config, wanted.machine, wanted.clips, size)


def _headline(machine: Machine) -> str:
    assert machine.memory is not None
    nodes, gpus = machine.nodes, machine.gpus_per_node
    shape = ("" if nodes == 1 else f"{nodes} x ") + (f"{gpus} GPU" if machine.gpus == 1 else f"{gpus} GPUs")
    return f"{shape} of {machine.memory / 1e9:.1f} GB; {machine.assumed}"


def _row(choice: Choice) -> list[str]:
    host = f" and {choice.host / 1e9:.0f} of the node's" if choice.host else ""
    batch = choice.query.config.train.global_batch_size
    return [
        choice.size,
        f"{choice.cost.parameters / 1e6:.0f} M",
        choice.strategy.summary,
        f"{choice.micro} of {batch}",
        f"{choice.device / 1e9:.1f}{host}",
        _hours(choice),
    ]


def _hours(choice: Choice) -> str:
    if choice.hours is None:
        return "not known"
    return f"{choice.hours:.0f}" if choice.hours >= 100 else f"{choice.hours:.3g}"


def _table(rows: list[list[str]]) -> list[str]:
    rows = [["model", "parameters", "held by", "micro batch", "GB a GPU", "hours"], *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]


def _saved(chosen: Choice, saved: list[tuple[tuple[str, ...], Choice]]) -> list[list[str]]:
    return [[" ".join(one), *_row(choice)[1:]] for one, choice in saved]


def _command(given: list[str], choice: Choice) -> list[str]:
    """Return the command that trains a choice. given: `--config`, its file, overrides."""
    nodes, gpus = choice.machine.nodes, choice.machine.gpus_per_node
    set_anew = {override.partition("=")[0] for override in choice.overrides}
    given = [*given[:2], *(word for word in given[2:] if word.partition("=")[0] not in set_anew)]
    name = Path(given[1]).stem
    packaged = configuration.CONFIGS / f"{name}.yaml"  # what a script of this name trains on
    if choice.machine.gpus == 1:
        start = "tgm-scale pretrain"
    elif nodes == 1:
        start = f"torchrun --nproc_per_node {gpus} -m tgm_scale pretrain"
    elif name in _SCRIPTS and configuration.packaged(given[1], ".yaml").resolve() == packaged.resolve():
        start, given = (
            f"sbatch --nodes={nodes} --gpus-per-node={gpus} --ntasks-per-node={gpus} slurm/{name}.sh",
            given[2:],
        )
    else:
        size = f"--nodes={nodes} --gpus-per-node={gpus} --ntasks-per-node={gpus} --cpus-per-task={_CORES} --mem=0"
        start = f"srun {size} tgm-scale pretrain"
    return [f"  {start} {shlex.join([*given, *_placeholders(given, choice), *choice.overrides])}"]


def _own_recipe(given: list[str], choice: Choice) -> list[str]:
    """Return a line on the packaged configuration of the size, where it is not the one that was given."""
    own = configuration.CONFIGS / f"pretrain_vit{choice.size.lower()}.yaml"
    if not own.is_file() or Path(given[1]).stem == own.stem:
        return []
    return [f"a recipe for this size, of another batch and mask: configs/{own.name} (--config {own.stem})"]


def _placeholders(given: list[str], choice: Choice) -> list[str]:
    """Return overrides for the user to complete, where the configuration's own paths do not exist here."""
    config, named = choice.query.config, {word.partition("=")[0] for word in given}
    assert isinstance(config, Config)
    found = []
    shards, towers = config.data.shards, config.guidance.towers
    if "data.shards" not in named and isinstance(shards, str) and "://" not in shards and not Path(shards).exists():
        found.append("data.shards=YOUR_SHARDS")
    if "guidance.towers" not in named and towers not in (None, "small") and not Path(str(towers)).exists():
        found.append("guidance.towers=YOUR_CLIP_FOLDER")
    return found


def _other_batch(wanted: Wanted, chosen: Choice) -> list[str]:
    given, train = wanted.config.train.global_batch_size, chosen.query.config.train
    batch, steps = train.global_batch_size, train.steps
    if batch == given:
        return []
    clips = "" if wanted.clips or not steps else f"; {steps} steps are {steps * batch} clips, not {steps * given}"
    return [
        f"the global batch is {batch}, not the configuration's {given}, to divide over the GPUs: that changes what is "
        f"learned, and the learning rate with it (optim.base_lr){clips}"
    ]


def _tree(choice: Choice) -> dict[str, Any]:
    return {
        "size": choice.size,
        "parameters": choice.cost.parameters,
        "stage": choice.strategy.stage,
        "offload": choice.strategy.offload,
        "activation_checkpointing": choice.strategy.checkpointing,
        "micro_batch_size": choice.micro,
        "global_batch_size": choice.query.config.train.global_batch_size,
        "bytes_per_gpu": choice.device,
        "host_bytes_per_node": choice.host,
        "hours": choice.hours,
        "overrides": choice.overrides,
    }


def _tree_of_machine(machine: Machine) -> dict[str, Any]:
    return {
        "nodes": machine.nodes,
        "gpus_per_node": machine.gpus_per_node,
        "bytes_per_gpu": machine.memory,
        "card": machine.card.name if machine.card else None,
        "assumes": machine.assumed,
    }
