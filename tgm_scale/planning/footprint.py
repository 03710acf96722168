"""What a run will need of memory, estimated from the sizes of what is kept, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.planning.run_plan import RunPlan, Shape

OFFLOADS = ("none", "optimizer", "all")  # `all`: optimizer and parameters


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process. On a CPU, device and host are one memory."""

    stage: int
    offload: str  # one of OFFLOADS
    state: float  # weights, gradients and moments on the device
    host: float  # and what of them lies in the host's memory
    activations: float

    @property
    def device(self) -> float:
        return self.state + self.activations


def footprint(plan: RunPlan, activation_checkpointing: bool) -> Footprint:
    """Of one of the plan's processes."""
    zero, precision = plan.engine.zero, plan.engine.precision
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    count = parameters(plan.shape, decoder=plan.masker is not None)
    state, host = state_bytes(count, zero["stage"], offload, precision, plan.layout.world_size)
    value = 4 if precision == "fp32" else 2
    return Footprint(zero["stage"], offload, state, host, value * activation_values(plan, activation_checkpointing))


def parameters(shape: Shape, decoder: bool = True) -> int:
    """Of a pretraining run's model, or without its decoder, as a classifier has them but for its head."""
    with torch.device("meta"):
        model = MaskedVideoAutoencoder(shape.size, shape.frames, shape.image_size, embedding_width=512)
    return sum(parameter.numel() for parameter in (model if decoder else model.encoder).parameters())


def state_bytes(count: int, stage: int, offload: str, precision: str, processes: int) -> tuple[float, float]:
    """(device, host) bytes of one process for `count` parameters, each part divided where the stage shards it.

    Offload of both makes 20 bytes a parameter: 20.1 were measured (docs/PERFORMANCE.md)."""
    value = 4 if precision == "fp32" else 2
    weights = value / (processes if stage == 3 else 1)
    summed = 4 if precision == "bf16" and stage > 0 else value  # gradients of bf16 are summed in fp32
    gradients = summed / (processes if stage >= 2 else 1)
    # fp32 weights and two moments; in fp32 without ZeRO Adam works on the module's own weights
    adam = (8 if precision == "fp32" and stage == 0 else 12) / (processes if stage >= 1 else 1)
    if offload == "none":
        return count * (weights + gradients + adam), 0.0
    # beside Adam's: gradients as they are summed up, and in fp32 for Adam; on the device those of a bucket at most
    host = adam + (summed + 4) / processes
    return (count * weights, count * host) if offload == "optimizer" else (0.0, count * (host + weights))


def activation_values(plan: RunPlan, activation_checkpointing: bool) -> float:
    """Values that the blocks keep for their backward: about 17 of width D a token with fused attention (inputs of two
    norms, q, k, v, attention output, three of the MLP at four times the width); with checkpointing one. Of those two
    are of the visible tokens in a decoder with cross-attention, k and v, and 15 of the targets."""
    size = plan.shape.size
    kept = 1 if activation_checkpointing else 17
    encoder = plan.visible * size.width * (size.depth * kept + 17)
    of_visible = of_target = kept
    if size.decoder_attention == "cross":
        of_visible, of_target = (0, 1) if activation_checkpointing else (2, 15)
    decoder = plan.visible * (size.decoder_depth * of_visible + 17) + plan.targets * (
        size.decoder_depth * of_target + 17
    )
    return plan.layout.micro_batch * (encoder + decoder * size.decoder_width * bool(plan.targets))
