"""What makes a run fit that does not: each way is tried by the same arithmetic, and only what fits is said."""

from __future__ import annotations

import dataclasses

from tgm_scale.planning.cost import Asked, cost_of, device_bytes
from tgm_scale.planning.footprint import ROOM
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.means import ladder, largest_that_fits

_MOST = 3  # ways that are said


def what_would_help(asked: Asked, machine: Machine) -> str:
    """Overrides, each of which makes it fit; none of them changes what is learned."""
    assert machine.memory is not None
    found = []
    if smaller := largest_that_fits(asked, machine.gpus, machine.memory):
        found.append(f"train.micro_batch_size={smaller[0].config.train.micro_batch_size}")
    for means in ladder(asked.config, machine.gpus):
        tried = means.of(asked)
        if device_bytes(cost_of(tried, machine.gpus), means.checkpointing) <= ROOM * machine.memory:
            found.append(" ".join(means.overrides))
    for means in ladder(asked.config, machine.gpus) if not found else ():
        if smaller := largest_that_fits(means.of(asked), machine.gpus, machine.memory):
            micro = smaller[0].config.train.micro_batch_size
            found.append(" ".join([*means.overrides, f"train.micro_batch_size={micro}"]))
    if not found:
        return "no stage, checkpointing, offload or micro batch makes it fit: a smaller model.size, or a larger card"
    return "what would help: " + ", or ".join(found[:_MOST])


def what_would_be_faster(asked: Asked, machine: Machine) -> str:
    """Activation checkpointing left out, where that fits, too; "" where it does not, or is not used."""
    model = asked.config.model
    if machine.memory is None or not model.activation_checkpointing:
        return ""
    plain = model.model_copy(update={"activation_checkpointing": False})
    tried = dataclasses.replace(asked, config=asked.config.model_copy(update={"model": plain}))
    cost, before = cost_of(tried, machine.gpus), cost_of(asked, machine.gpus)
    total = device_bytes(cost, False)
    if total > ROOM * machine.memory:
        return ""
    return (
        f"model.activation_checkpointing=false fits, too, with {total / 1e9:.1f} GB, and saves the second forward "
        f"pass, {1 - cost.flop / before.flop:.0%} of the arithmetic"
    )
