"""Memory that a run will need, estimated from the sizes of what it keeps, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tgm_scale.assembly.run_plan import RunPlan, Shape
from tgm_scale.data.loading.to_device import MAX_PENDING
from tgm_scale.models.generator import generator_parameters
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.sampler import sampler_parameters
from tgm_scale.planning.activations import activation_bytes
from tgm_scale.planning.update_memory import MAX_LIVE, PREFETCH, ReductionMemory

# sections of DeepSpeed's JSON for each offload (`all`: optimizer and parameters), and the lowest stage that has it
SECTIONS = {"none": (), "optimizer": ("offload_optimizer",), "all": ("offload_optimizer", "offload_param")}
LOWEST_STAGE = {"none": 0, "optimizer": 1, "all": 3}
OFFLOADS = tuple(SECTIONS)
ROOM = 0.92  # of a GPU's memory: the rest goes to the CUDA context, NCCL and gaps between tensors


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process, on the device except for `host`. On a CPU, device and host are one memory.

    weights: with those that stage 3 has gathered. gradients: as they are summed over micro steps. optimizer: fp32
    weights and moments. buckets: in which DeepSpeed collects gradients to send, as long as they are held. activations:
    what a micro batch keeps for its backward pass. update: what reducing the gradients, or Adam, takes beyond the
    activations that are freed by then. clips: pixels of a step's micro batches, and on a GPU of those copied ahead."""

    stage: int
    offload: str  # one of OFFLOADS
    weights: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    update: float
    clips: float
    host: float  # offloaded

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        return self.state + self.buckets + self.activations + self.update + self.clips

    @property
    def on_cpu(self) -> float:
        """Bytes of a process without a GPU, whose device is the host."""
        return self.device + self.host


def footprint(plan: RunPlan, activation_checkpointing: bool) -> Footprint:
    """Return the footprint of one of the plan's processes."""
    zero, precision = plan.engine.zero, plan.engine.precision
    stage, processes = zero["stage"], plan.layout.world_size
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    count = parameters_of(plan)
    (weights, gradients, adam), host = state_bytes(count, stage, offload, precision, processes)
    # two moments were counted, and Lion, which is never offloaded, has one
    adam -= 4 * count * (2 - plan.engine.moments) / (processes if stage >= 1 else 1)
    value = 4 if precision == "fp32" else 2
    gathered = ahead = 0.0
    if stage == 3:  # besides a process's share, the gathered weights that are kept for the backward pass
        kept = zero.get("stage3_max_live_parameters", MAX_LIVE)
        gathered = value * min(count, kept) * (processes > 1 or offload == "all")
        # and the buffer into which ranks gather the next layers' weights, before each is copied from it
        ahead = value * min(count, zero.get("stage3_prefetch_bucket_size", PREFETCH)) * (processes > 1)
    activations = activation_bytes(plan, activation_checkpointing)
    collecting = ReductionMemory(plan, count)
    ends = [collecting.reducing(activations, gradients) - ahead]
    if offload == "none":
        ends.append(collecting.updating(gradients) - gathered - ahead)
    update = max(0.0, max(ends) - activations)
    weights += gathered + ahead
    clips = _clips(plan)
    return Footprint(stage, offload, weights, gradients, adam, collecting.held, activations, update, clips, host)


def _clips(plan: RunPlan) -> float:
    layout, shape = plan.layout, plan.shape
    ahead = min(MAX_PENDING, layout.accumulation) if plan.device.type == "cuda" else 0
    return 3 * shape.frames * shape.image_size**2 * layout.micro_batch * (layout.accumulation + ahead)


def parameters_of(plan: RunPlan) -> int:
    """Return the number of parameters of the run's model, including a learned mask's."""
    of_mask = generator_parameters(plan.heads) if plan.heads else sampler_parameters(plan.shape.size)
    return parameters(plan.shape, decoder=plan.masker is not None) + plan.learns_mask * of_mask


@cache
def parameters(shape: Shape, decoder: bool = True) -> int:
    """Return the parameters of a pretraining model; without its decoder, those of a classifier except its head."""
    with torch.device("meta"):
        model = MaskedVideoAutoencoder(shape.size, shape.frames, shape.image_size, embedding_width=512)
    return sum(parameter.numel() for parameter in (model if decoder else model.encoder).parameters())


def state_bytes(
    count: int, stage: int, offload: str, precision: str, processes: int
) -> tuple[tuple[float, float, float], float]:
    """Return ((weights, gradients, optimizer) on the device, all on the host): bytes of one process for `count`
    parameters, each part divided where the stage shards it.

    Offload of both makes 20 bytes a parameter: 20.1 were measured (docs/PERFORMANCE.md)."""
    value = 4 if precision == "fp32" else 2
    weights = value / (processes if stage == 3 else 1)
    summed = 4 if precision == "bf16" and stage > 0 else value  # gradients of bf16 are summed in fp32
    gradients = summed / (processes if stage >= 2 else 1)
    # fp32 weights and two moments; in fp32 without ZeRO Adam works on the module's own weights
    adam = (8 if precision == "fp32" and stage == 0 else 12) / (processes if stage >= 1 else 1)
    if offload == "none":
        return (count * weights, count * gradients, count * adam), 0.0
    # besides Adam's: gradients as they are summed, and in fp32 for Adam; on the device those of a bucket at most
    host = adam + (summed + 4) / processes
    if offload == "optimizer":
        return (count * weights, 0.0, 0.0), count * host
    return (0.0, 0.0, 0.0), count * (host + weights)
