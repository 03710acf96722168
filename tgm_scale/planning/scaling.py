"""One configuration on more and more GPUs: the time of a step, and what falls short first. All by arithmetic."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from tgm_scale.config.sections import Config
from tgm_scale.planning.cost import Cost, CostQuery, cost_of
from tgm_scale.planning.estimate import CLIP_BYTES, CLIPS_A_CORE, STORAGE
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.memory_strategies import with_micro
from tgm_scale.planning.step_time import step_time

_EMBEDDING, _IDS = 512, 24  # values of CLIP ViT-B/32's embedding; bytes of a clip's three ids
_CORES, _SHARED = 12, 100e9  # of a GPU; bytes a second of the whole storage
FORMULAS = (
    "batch: the configuration's, in whole clips of each GPU and whole groups of the contrast; step: 2 x passes x "
    "multiply-accumulates x batch / GPUs / rate, towers, and the network that is waited for",
    "efficiency: arithmetic / step; contrast: batch x (2 x 512 x 4 + 24) bytes gathered by each GPU, and 24 bytes a "
    "pair of a clip and a caption of its group (sigmoid: 36), of all clips that a pass has, or of two passes of the "
    "batch",
    f"loading: clips/s / repeats / {CLIPS_A_CORE} clips/s of a core, {_CORES} cores a GPU assumed; storage: "
    f"{CLIP_BYTES / 1e6:.1f} MB a clip, {_SHARED / 1e9:.0f} GB/s in all assumed",
    f"checkpoint: 12 bytes a parameter at {STORAGE / 1e9:.0f} GB/s a node, while checkpoint.every steps go on",
)


@dataclass(frozen=True)
class Row:
    """Seconds, bytes and shares of a step on so many GPUs. short: what the step needs more of than is assumed."""

    gpus: int
    batch: int
    micro: int
    seconds: float
    efficiency: float
    gathered: float
    contrast: float
    cores: float
    read: float
    checkpoint: float
    short: list[str]


def rows(config: Config, machine: Machine, counts: list[int], per_gpu: int | None = None) -> list[Row]:
    """Return a row for each count of GPUs. machine: of whole nodes; its number of nodes is changed. per_gpu: clips of
    a GPU's step, which set the batch; None: the configuration's batch, as long as each GPU has a clip. Raises
    ValueError where it does not divide."""
    found = []
    for count in counts:
        there = dataclasses.replace(machine, nodes=_nodes(machine, count))
        wanted = config.train.global_batch_size if per_gpu is None else per_gpu * count
        found.append(_row(config, there, count, wanted))
    return found


def _nodes(machine: Machine, count: int) -> int:
    nodes, rest = divmod(count, machine.gpus_per_node)
    if rest or not nodes:
        raise ValueError(f"--scale {count}: wanted whole nodes of {machine.gpus_per_node} GPUs (--gpus-per-node)")
    return nodes


def _row(config: Config, machine: Machine, gpus: int, wanted: int) -> Row:
    train, repeats = config.train, config.data.repeated_augmentation
    unit = math.lcm(gpus * repeats, config.objective.contrastive_batch or 1)
    batch = max(unit, wanted // unit * unit)
    share = batch // gpus
    micro = max(m for m in range(1, share + 1) if share % m == 0 and m % repeats == 0 and m <= train.micro_batch_size)
    changed = config.model_copy(update={"train": train.model_copy(update={"global_batch_size": batch})})
    query = with_micro(CostQuery.pretraining(changed), micro)
    cost = cost_of(query, gpus)
    time = step_time(cost, machine)
    if time is None:
        raise ValueError("--scale: the GPUs' rate is not known: give --card, --tflops or --rates")
    group = query.negatives or 0
    gathered = batch * (2 * _EMBEDDING * 4 + _IDS) if group else 0
    seconds = time.total + gathered / machine.network.rate(machine.nodes) * (1 - machine.network.overlap)
    drawn = batch / repeats / seconds
    figures = {
        "gathered": float(gathered),
        "contrast": cost.pairs,
        "cores": drawn / CLIPS_A_CORE / gpus,
        "read": drawn * CLIP_BYTES,
        "checkpoint": 4 * (1 + cost.run.engine.moments) * cost.parameters / machine.nodes / STORAGE,
    }
    efficiency = (time.model + time.towers) / seconds
    short = _short(config, cost, machine, seconds, efficiency, figures)
    return Row(gpus, batch, micro, seconds, efficiency, **figures, short=short)


def _short(
    config: Config, cost: Cost, machine: Machine, seconds: float, efficiency: float, figures: dict[str, float]
) -> list[str]:
    found = []
    if efficiency < 0.5:
        found.append("network")
    if cost.run.layout.micro_batch * cost.run.layout.accumulation < 8:
        found.append("clips of a GPU")
    if machine.memory is not None and figures["contrast"] > 0.1 * machine.memory:
        found.append("contrast")
    if figures["cores"] > _CORES:
        found.append("decoding")
    if figures["read"] > _SHARED:
        found.append("storage")
    if figures["checkpoint"] > config.checkpoint.every * seconds:
        found.append("checkpoint")
    return found


def lines(found: list[Row]) -> list[str]:
    header = (
        "GPUs | batch | clips of a pass | s a step | clips/s | efficiency | contrast GB | cores a GPU | GB/s read | "
    )
    header += "checkpoint s | short"
    cells = [
        f"{row.gpus} | {row.batch} | {row.micro} | {row.seconds:.3f} | {row.batch / row.seconds:,.0f} | "
        f"{row.efficiency:.0%} | {row.contrast / 1e9:.2f} | {row.cores:.1f} | {row.read / 1e9:.2f} | "
        f"{row.checkpoint:.1f} | {', '.join(row.short) or 'nothing'}"
        for row in found
    ]
    rule = " | ".join(["---"] * (header.count("|") + 1))
    return [*(f"| {line} |" for line in (header, rule, *cells)), *FORMULAS]


def tree(found: list[Row]) -> dict[str, Any]:
    """Return the rows as a tree for JSON."""
    return {"rows": [dataclasses.asdict(row) for row in found], "formulas": list(FORMULAS)}
