"""Planned gain of a larger card, or of twice the nodes, over the best trial, from the planner's arithmetic."""

from __future__ import annotations

import dataclasses

from tgm_scale.config import Config
from tgm_scale.planning import cards
from tgm_scale.planning.cards import Card
from tgm_scale.planning.cost import CostQuery, cost_of
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.memory_strategies import largest_that_fits
from tgm_scale.planning.step_time import step_time


def prospects(config: Config, shape: tuple[int, int], card: Card | None, measured: float) -> list[str]:
    """Return lines on the gains. shape: nodes, and GPUs per node, of the trials; card: the GPUs' entry, None where the
    table has none or there is no GPU. measured: clips per second of the best trial."""
    if card is None:
        return ["a larger card, more nodes: not planned, since these are no GPUs of the planner's table"]
    query = CostQuery.pretraining(config)
    nodes, gpus = shape
    here = Machine(nodes, gpus, card.memory * 1e9, card, card.peak)
    lines = []
    larger = [one for one in cards.CARDS if one.memory > card.memory]
    if larger:
        nearest = min(larger, key=lambda one: one.memory)
        lines.append(_with_card(query, here, nearest, measured))
    twice = dataclasses.replace(here, nodes=2 * nodes)
    try:
        gain = _speed(query, twice) / _speed(query, here)
        lines.append(
            f"{twice.nodes} nodes of {gpus} GPUs: {gain:.2f} times the speed, {gain * measured:.0f} clips/s planned"
        )
    except ValueError as error:
        lines.append(f"{twice.nodes} nodes of {gpus} GPUs: {error}")
    return lines


def _with_card(query: CostQuery, here: Machine, card: Card, measured: float) -> str:
    there = dataclasses.replace(here, memory=card.memory * 1e9, card=card, peak=card.peak)
    assert there.memory is not None
    fitted = largest_that_fits(query, there.gpus, there.memory)
    micro = f", micro batch up to {fitted[0].config.train.micro_batch_size}" if fitted else ""
    gain = _speed(query, there) / _speed(query, here)
    return (
        f"{card.name} of {card.memory:g} GB: {gain:.2f} times the speed{micro}, {gain * measured:.0f} clips/s planned"
    )


def _speed(query: CostQuery, machine: Machine) -> float:
    """Return clips per second. Raises ValueError where the batch does not divide."""
    time = step_time(cost_of(query, machine.gpus), machine)
    assert time is not None
    return query.config.train.global_batch_size / time.total
