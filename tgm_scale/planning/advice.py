"""Changes that make a run fit that does not: each is tried by the same arithmetic; only those that fit are named."""

from __future__ import annotations

import dataclasses

from tgm_scale.planning.cost import CostQuery, cost_of, device_bytes
from tgm_scale.planning.footprint import ROOM
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.memory_strategies import candidate_strategies, largest_that_fits

_MOST = 3  # changes that are named


def what_would_help(query: CostQuery, machine: Machine) -> str:
    """Return overrides, each of which makes the run fit; none of them changes what is learned."""
    assert machine.memory is not None
    found = []
    if smaller := largest_that_fits(query, machine.gpus, machine.memory):
        found.append(f"train.micro_batch_size={smaller[0].config.train.micro_batch_size}")
    for strategy in candidate_strategies(query.config, machine.gpus):
        tried = strategy.of(query)
        if device_bytes(cost_of(tried, machine.gpus), strategy.checkpointing) <= ROOM * machine.memory:
            found.append(" ".join(strategy.overrides))
    for strategy in candidate_strategies(query.config, machine.gpus) if not found else ():
        if smaller := largest_that_fits(strategy.of(query), machine.gpus, machine.memory):
            micro = smaller[0].config.train.micro_batch_size
            found.append(" ".join([*strategy.overrides, f"train.micro_batch_size={micro}"]))
    if not found:
        return "no stage, checkpointing, offload or micro batch makes it fit: a smaller model.size, or a larger card"
    return "what would help: " + ", or ".join(found[:_MOST])


def what_would_be_faster(query: CostQuery, machine: Machine) -> str:
    """Return the advice to drop activation checkpointing, where the run fits without it; "" where not, or if
    unused."""
    model = query.config.model
    if machine.memory is None or not model.activation_checkpointing:
        return ""
    plain = model.model_copy(update={"activation_checkpointing": False})
    tried = dataclasses.replace(query, config=query.config.model_copy(update={"model": plain}))
    cost, before = cost_of(tried, machine.gpus), cost_of(query, machine.gpus)
    total = device_bytes(cost, False)
    if total > ROOM * machine.memory:
        return ""
    return (
        f"model.activation_checkpointing=false fits, too, with {total / 1e9:.1f} GB, and saves the second forward "
        f"pass, {1 - cost.flop / before.flop:.0%} of the arithmetic"
    )
