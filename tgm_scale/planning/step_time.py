"""How long a step takes: arithmetic at a rate that is assumed or was measured, and the network beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tgm_scale.planning.cost import Cost
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.network import messages_of

_TOWER_WIDTH = 768  # of CLIP's image tower at B


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step. network: of all collectives; exposed: what of it no arithmetic hides."""

    model: float
    towers: float
    network: float
    exposed: float

    @property
    def total(self) -> float:
        """Without waits for data and what offload copies."""
        return self.model + self.towers + self.exposed


def step_time(cost: Cost, machine: Machine) -> StepTime | None:
    """None where the machine's rate is not known. Raises ValueError where it was not measured in the precision."""
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
    """FLOP/s of a GPU by the width of a block."""
    rates, precision = machine.rates, cost.run.engine.precision
    if rates is not None:
        return lambda width: rates.of(precision, width)
    flops = machine.flops
    return None if flops is None else lambda width: flops
