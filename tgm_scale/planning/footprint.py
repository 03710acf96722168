"""What a run will need of memory, estimated from the sizes of what is kept, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from tgm_scale.data.loading.to_device import MAX_PENDING
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.planning.activations import activation_bytes
from tgm_scale.planning.run_plan import RunPlan, Shape

OFFLOADS = ("none", "optimizer", "all")  # `all`: optimizer and parameters
ROOM = 0.92  # of a GPU's memory: the rest is the context's, NCCL's and lost between tensors
# DeepSpeed's defaults, in values: of a bucket of gradients; at stage 3 gathered weights that may stay, those that are
# gathered in one message, and those that Adam works on at once
BUCKET, MAX_LIVE, PREFETCH, _SUB_GROUP = 5e8, 1e9, 5e7, 1e9


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process, on the device but for `host`. On a CPU, device and host are one memory.

    weights: with those that stage 3 has gathered. gradients: as they are summed over micro steps. optimizer: fp32
    weights and moments. buckets: in which DeepSpeed collects gradients to send, as long as they are held. activations:
    what a micro batch keeps for its backward pass. update: what reducing the gradients, or Adam, takes more than the
    activations that are gone by then. clips: pixels of a step's micro batches, and on a GPU of those copied ahead."""

    stage: int
    offload: str  # one of OFFLOADS
    weights: float
    gradients: float
    optimizer: float
    buckets: float
    activations: float
    update: float
    clips: float
    host: float  # what is offloaded

    @property
    def state(self) -> float:
        return self.weights + self.gradients + self.optimizer

    @property
    def device(self) -> float:
        return self.state + self.buckets + self.activations + self.update + self.clips


def footprint(plan: RunPlan, activation_checkpointing: bool) -> Footprint:
    """Of one of the plan's processes."""
    zero, precision = plan.engine.zero, plan.engine.precision
    stage, processes = zero["stage"], plan.layout.world_size
    offload = "all" if "offload_param" in zero else "optimizer" if "offload_optimizer" in zero else "none"
    count = parameters(plan.shape, decoder=plan.masker is not None)
    (weights, gradients, adam), host = state_bytes(count, stage, offload, precision, processes)
    value = 4 if precision == "fp32" else 2
    if stage == 3:  # beside a process's share the weights that were gathered and are kept for the backward pass
        gathered = min(count, zero.get("stage3_max_live_parameters", MAX_LIVE)) * (processes > 1 or offload == "all")
        # and the buffer into which ranks gather those of the layers to come, before each weight is taken from it
        ahead = min(count, zero.get("stage3_prefetch_bucket_size", PREFETCH)) * (processes > 1)
        weights += value * (gathered + ahead)
    activations = activation_bytes(plan, activation_checkpointing)
    written = min(float(zero.get("reduce_bucket_size", BUCKET)), count) * _bucket_value(plan) * (stage > 0)
    buckets = _buckets(plan, written)
    beside = 0.0 if plan.device.type == "cuda" or stage == 3 else written  # memory once it is written to
    reducing = activations * (1 - min(1.0, written / _bucket_value(plan) / count)) if stage else 0.0
    reducing += _copies(plan, written) + beside
    if stage == 1:  # they are moved into the bucket
        reducing -= gradients * min(1.0, written / _bucket_value(plan) / count)
    updating = _updating(plan, count) + beside - (gradients if stage in (1, 2) else 0.0) if offload == "none" else 0.0
    update = max(0.0, reducing - activations, updating - activations)
    return Footprint(stage, offload, weights, gradients, adam, buckets, activations, update, _clips(plan), host)


def _clips(plan: RunPlan) -> float:
    layout, shape = plan.layout, plan.shape
    ahead = min(MAX_PENDING, layout.accumulation) if plan.device.type == "cuda" else 0
    return 3 * shape.frames * shape.image_size**2 * layout.micro_batch * (layout.accumulation + ahead)


def _bucket_value(plan: RunPlan) -> int:
    """Bytes: DeepSpeed stages fp32 sums at stage 1, and at stage 3 by the type that is sent."""
    return 2 if plan.engine.precision == "bf16" and plan.stage == 2 else 4


def _buckets(plan: RunPlan, written: float) -> float:
    """On a GPU whole from the first step on; on a CPU only what is written to is memory, and at stages 1 and 2 a new
    bucket is made for each backward pass."""
    zero, stage = plan.engine.zero, plan.stage
    if stage == 0:
        return 0.0
    if plan.device.type == "cpu":
        return written if stage == 3 else 0.0
    values = float(zero.get("reduce_bucket_size", BUCKET))
    return values * _bucket_value(plan) * (2 if zero.get("overlap_comm", False) and stage < 3 else 1)


def _copies(plan: RunPlan, written: float) -> float:
    """Of a bucket that is reduced: flattened for the collective, in the type that is sent."""
    stage, bf16 = plan.stage, plan.engine.precision == "bf16"
    values = written / _bucket_value(plan)
    if stage == 3:
        return values * (8 if bf16 else 4)
    if stage and plan.layout.world_size > 1:
        return values * (6 if bf16 and stage == 2 else 4)
    return 0.0


def _updating(plan: RunPlan, count: int) -> float:
    """Beside the state, while Adam works: its gradient as one fp32 tensor, and on a CPU two of its own of that size
    (on a GPU its arithmetic is one kernel)."""
    stage, processes = plan.stage, plan.layout.world_size
    if stage == 0:
        return 4.0 * count if plan.engine.precision == "bf16" else 0.0
    share = count / processes
    if stage == 3:
        share = min(share, plan.engine.zero.get("sub_group_size", _SUB_GROUP))
    return share * (4 if plan.device.type == "cuda" else 12)


@cache
def parameters(shape: Shape, decoder: bool = True) -> int:
    """Of a pretraining run's model, or without its decoder, as a classifier has them but for its head."""
    with torch.device("meta"):
        model = MaskedVideoAutoencoder(shape.size, shape.frames, shape.image_size, embedding_width=512)
    return sum(parameter.numel() for parameter in (model if decoder else model.encoder).parameters())


def state_bytes(
    count: int, stage: int, offload: str, precision: str, processes: int
) -> tuple[tuple[float, float, float], float]:
    """((weights, gradients, optimizer) on the device, all on the host): bytes of one process for `count` parameters,
    each part divided where the stage shards it.

    Offload of both makes 20 bytes a parameter: 20.1 were measured (docs/PERFORMANCE.md)."""
    value = 4 if precision == "fp32" else 2
    weights = value / (processes if stage == 3 else 1)
    summed = 4 if precision == "bf16" and stage > 0 else value  # gradients of bf16 are summed in fp32
    gradients = summed / (processes if stage >= 2 else 1)
    # fp32 weights and two moments; in fp32 without ZeRO Adam works on the module's own weights
    adam = (8 if precision == "fp32" and stage == 0 else 12) / (processes if stage >= 1 else 1)
    if offload == "none":
        return (count * weights, count * gradients, count * adam), 0.0
    # beside Adam's: gradients as they are summed up, and in fp32 for Adam; on the device those of a bucket at most
    host = adam + (summed + 4) / processes
    if offload == "optimizer":
        return (count * weights, 0.0, 0.0), count * host
    return (0.0, 0.0, 0.0), count * (host + weights)
