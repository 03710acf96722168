"""Figures of a plan, each with the assumptions that it rests on."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.planning.advice import what_would_be_faster, what_would_help
from tgm_scale.planning.cost import Cost, CostQuery, cost_of
from tgm_scale.planning.footprint import ROOM, Footprint, footprint
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.network import messages_of
from tgm_scale.planning.step_time import StepTime, step_time

# clips of 16 frames that a core decodes a second, from videos of 10 s at 640 x 360 with a keyframe every 12 frames;
# and bytes of a video of 456 x 256, the nearest size that was weighed (docs/PERFORMANCE.md, 2026-11-24 and 26)
CLIPS_A_CORE, CLIP_BYTES = 17.5, 1.129e6
STORAGE = 1e9  # bytes a second that a node writes


@dataclass(frozen=True)
class Figure:
    name: str
    text: str
    assumes: str = ""
    values: dict[str, Any] = field(default_factory=dict)  # bytes, seconds, counts, by names with units


def figures(query: CostQuery, machine: Machine) -> list[Figure]:
    """Return the figures of a plan. Raises ValueError where the batch does not divide over the GPUs."""
    cost = cost_of(query, machine.gpus)
    need, time = footprint(cost.run, query.config.model.activation_checkpointing), step_time(cost, machine)
    return [
        *_of_model(query, cost, machine, time),
        *_of_memory(query, cost, need, machine),
        *_of_network(cost, machine, time),
        *_of_run(query, cost, machine, time),
    ]


def lines(found: list[Figure]) -> str:
    width = max(len(figure.name) for figure in found)
    rows = [(figure.name, figure.text + (f"; {figure.assumes}" if figure.assumes else "")) for figure in found]
    return "\n".join(f"{name:>{width}}  {text}" for name, text in rows)


def tree(found: list[Figure]) -> dict[str, Any]:
    """Return the figures as a tree for JSON."""
    return {one.name.replace(" ", "_"): {**one.values, "text": one.text, "assumes": one.assumes} for one in found}


def _read(run: RunPlan) -> str:
    every = run.shape.grid.tokens
    return f"all {every}" if run.visible == every else f"{run.visible} of {every}, those that vary most"


def _of_model(query: CostQuery, cost: Cost, machine: Machine, time: StepTime | None) -> list[Figure]:
    run, masks = cost.run, cost.run.masker
    layout, million = run.layout, cost.parameters / 1e6
    first = f", and {_giga(cost.first_pass)} for the first pass of the cached contrast" if cost.first_pass else ""
    step = f"{_said(cost.flop / 1e15, 2)} PFLOP"
    values: dict[str, Any] = {"flop": cost.flop}
    if time:
        values["seconds"] = time.model
        step += f", {_said(values['seconds'], 2)} s"
    found = [
        Figure(
            "model",
            f"{query.config.model.size}, {million:.0f} million parameters",
            values={"size": query.config.model.size, "parameters": cost.parameters},
        ),
        Figure("tokens", _read(run) if masks is None else masks.summary()),
        Figure(
            "batch",
            f"{layout.global_batch} = {machine.gpus} GPUs x {layout.accumulation} micro steps x {layout.micro_batch}",
            values={"global": layout.global_batch, "micro": layout.micro_batch, "accumulation": layout.accumulation},
        ),
        Figure(
            "a clip",
            f"{_giga(cost.forward)} multiply-accumulates forward{first}",
            values={"forward_macs": cost.forward, "first_pass_macs": cost.first_pass},
        ),
        Figure("a step", step, machine.assumed + _in_fp32(cost, machine), values),
    ]
    if cost.towers.macs:
        seconds = time.towers if time else None
        text = f"{_said(cost.towers.bytes / 1e9, 1)} GB a GPU, {_giga(cost.towers.macs)} multiply-accumulates a clip"
        text += f", {_said(seconds, 2)} s a step" if seconds is not None else ""
        values = {"bytes": cost.towers.bytes, "macs": cost.towers.macs, "seconds": seconds}
        found.append(Figure("frozen towers", text, cost.towers.said + ", at the same rate", values))
    return found


def _giga(count: float) -> str:
    """Format a count in G with one decimal place, or with two digits below 1 G."""
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e9:#.2g} G"


def _said(value: float, places: int = 0) -> str:
    """Format a value with so many decimal places; one that they would show as 0 with two digits, from 0.001 on."""
    if round(value, places) or not value:
        return f"{value:.{places}f}"
    return f"{value:.2g}" if value >= 0.001 else "under 0.001"


def _in_fp32(cost: Cost, machine: Machine) -> str:
    fp32 = cost.run.engine.precision == "fp32" and machine.rates is None
    return "; the run is in fp32, which a GPU computes several times slower: give that rate by --tflops" * fp32


def _of_memory(query: CostQuery, cost: Cost, need: Footprint, machine: Machine) -> list[Figure]:
    names = ("weights", "gradients", "optimizer", "buckets", "activations", "update", "clips")
    parts = {name: float(getattr(need, name)) for name in names} | {"towers": cost.towers.bytes}
    parts["pairs"] = cost.beside(need)
    total = sum(parts.values())
    text = f"{total / 1e9:.1f} GB a GPU at ZeRO {need.stage}: "
    text += ", ".join(f"{name} {value / 1e9:.1f}" for name, value in parts.items() if value >= 5e7)
    if need.host:
        text += f"; and {need.host / 1e9:.1f} GB of the host's memory a GPU"
    basis = "estimate: sizes of what is kept, DeepSpeed's buckets whole"
    found = [Figure("memory", text, basis, {**parts, "total": total, "host": need.host, "stage": need.stage})]
    if machine.memory is None:
        return found
    room = ROOM * machine.memory
    said = f"{machine.memory / 1e9:.0f} GB" + (f" ({machine.card.name})" if machine.card else "")
    if total <= room:
        text = f"fits {said} with {(room - total) / 1e9:.1f} GB to spare"
        text += f": {faster}" if (faster := what_would_be_faster(query, machine)) else ""
    else:
        text = f"does not fit {said}, {(total - room) / 1e9:.1f} GB too much: {what_would_help(query, machine)}"
    basis = f"{1 - ROOM:.0%} left for the CUDA context, NCCL and gaps between tensors"
    return [*found, Figure("verdict", text, basis, {"fits": total <= room, "spare": room - total})]


def _of_network(cost: Cost, machine: Machine, time: StepTime | None) -> list[Figure]:
    if machine.gpus == 1:
        return []
    messages = messages_of(cost.run, cost.parameters)
    seconds = machine.network.seconds(cost.sent, messages, machine.gpus, machine.nodes)
    exposed = seconds * (1 - machine.network.overlap)
    text = f"{_said(cost.sent / 1e9, 2)} GB sent by each GPU a step at ZeRO {cost.run.stage} in {messages} "
    text += f"collectives, {_said(seconds, 2)} s, of which {_said(exposed, 2)} s are waited for"
    values = {"bytes": cost.sent, "messages": messages, "seconds": seconds, "exposed_seconds": exposed}
    if time:
        values["efficiency"] = (time.total - time.exposed) / time.total
        text += f": {values['efficiency']:.0%} of the step is arithmetic"
    return [Figure("network", text, machine.network.assumed(machine.nodes), values)]


def _of_run(query: CostQuery, cost: Cost, machine: Machine, time: StepTime | None) -> list[Figure]:
    train, kept = query.config.train, query.config.checkpoint
    run = cost.run
    size = 4 * (1 + run.engine.moments) * cost.parameters
    count = kept.keep + 1 + (train.steps // kept.keep_every if train.steps and kept.keep_every else 0)
    text = f"{_said(size / 1e9, 1)} GB each, {_said(count * size / 1e9)} GB for {count}, "
    text += f"{_said(size / machine.nodes / STORAGE)} s"
    values: dict[str, Any] = {"bytes": size, "disk_bytes": count * size, "seconds": size / machine.nodes / STORAGE}
    found = [
        Figure("checkpoint", text, f"assumed: a node writes {STORAGE / 1e9:.0f} GB/s; no step waits for it", values)
    ]
    if time is None:
        return found
    drawn = run.layout.global_batch / run.repeats / time.total
    cores, read = math.ceil(drawn / CLIPS_A_CORE), drawn * CLIP_BYTES
    each = f", each for {run.repeats} clips (data.repeated_augmentation)" if run.repeats > 1 else ""
    text = (
        f"{cores} core{'s' * (cores > 1)}, {drawn / CLIPS_A_CORE / machine.gpus:.1f} a GPU, decode {drawn:.0f} videos "
        f"a second{each}, {read / 1e6:.0f} MB/s of storage"
    )
    basis = f"measured on one CPU core: {CLIPS_A_CORE} clips/s of 640 x 360 and 10 s; {CLIP_BYTES / 1e6:.1f} MB each"
    found.append(
        Figure("loading", text, basis, {"cores": cores, "videos_per_second": drawn, "bytes_per_second": read})
    )
    if train.steps:
        found += _totals(train.steps, time, machine)
    return found


def _totals(steps: int, time: StepTime, machine: Machine) -> list[Figure]:
    hours, with_towers = steps * time.model / 3600, steps * (time.model + time.towers) / 3600
    whole = steps * time.total / 3600
    text = f"{steps} steps, {_said(hours, 1)} h of the model"
    text += f"; {_said(with_towers, 1)} h with guidance" if time.towers else ""
    text += f"; {_said(whole, 1)} h with what is waited for of the network" if time.exposed else ""
    gpu_hours = whole * machine.gpus
    text += f"; {_said(gpu_hours)} GPU hours"
    values: dict[str, Any] = {"steps": steps, "hours": hours, "hours_with_towers": with_towers, "hours_in_all": whole}
    values["gpu_hours"] = gpu_hours
    basis = "assumed: no step waits for data"
    if machine.card:
        values["kwh"] = gpu_hours * machine.card.watts / 1000
        text += f"; {_said(values['kwh'])} kWh"
        basis += f"; {machine.card.watts:.0f} W a GPU, its limit, without host and cooling"
    if machine.price is not None:
        values["money"] = gpu_hours * machine.price
        money = values["money"]
        text += f"; {_said(money) if money < 1 else format(money, ',.0f')} at {machine.price:g} a GPU hour"
    return [Figure("the run", text, basis, values)]
