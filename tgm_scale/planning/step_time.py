"""Time of a step: arithmetic at an assumed or measured rate, plus the network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tgm_scale.planning.cost import Cost
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.network import messages_of

_TOWER_WIDTH = 768  # of CLIP's image tower at B


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. network: of all collectives; exposed: the part of it that no arithmetic hides."""

    model: float
    towers: float
    network: float
    exposed: float

    @property
    def total(self) -> float:
        """Seconds without waits for data and the copies of offload."""
        return self.model + self.towers + self.exposed


def step_time(cost: Cost, machine: Machine) -> StepTime | None:
    """Return the time of a step; None where the machine's rate is not known. Raises ValueError where it was not
    measured in the run's precision."""
    rate = _rate(cost, machine)
    if rate is None:
        return None
    run = cost.run
    shape, encoder = run.shape, run.encoder_macs
    parts = [(encoder * cost.passes + cost.first_pass, shape.size.width)]
    parts.append(((run.macs_per_clip - encoder) * cost.passes, shape.size.decoder_width))
    share = run.layout.global_batch / run.layout.world_size  # clips of a GPU
    model = sum(2 * share * macs / rate(width) for macs, width in parts if macs)
    towers = 2 * share * cost.towers.macs / rate(_TOWER_WIDTH)
    messages = messages_of(run, cost.parameters)
    network = machine.network.seconds(cost.sent, messages, machine.gpus, machine.nodes)
    return StepTime(model, towers, network, network * (1 - machine.network.overlap))


def _rate(cost: Cost, machine: Machine) -> Callable[[int], float] | None:
    """Return the FLOP/s of a GPU as a function of the width of a block; None where unknown."""
    rates, precision = machine.rates, cost.run.engine.precision
    if rates is not None:
        return lambda width: rates.of(precision, width)
    flops = machine.flops
    return None if flops is None else lambda width: flops
