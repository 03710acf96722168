"""What a run will cost on a cluster: arithmetic, memory, time; before a job is queued."""

from __future__ import annotations

import torch

from tgm_scale.config import Config
from tgm_scale.models.pretraining import macs_per_clip
from tgm_scale.runtime.distributed import Place
from tgm_scale.training import build, footprint

GIB = 2**30


def plan(config: Config, gpus: int, flops: float) -> str:
    """The plan in lines. Raises ValueError where the batch does not divide over the GPUs."""
    config = build.for_processes(config, gpus)
    size, masks = build.model_size(config), build.masker(config)
    train, per_pass = config.train, config.train.micro_batch_size * gpus
    if train.global_batch_size % per_pass:
        raise ValueError(
            f"train.global_batch_size={train.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{train.micro_batch_size} x {gpus} GPUs: {_advice(config, gpus)}"
        )
    accumulation = train.global_batch_size // per_pass
    targets = masks.target_count if config.objective.reconstruction_weight else 0
    forward = macs_per_clip(size, config.data.frames, config.data.size, masks.visible_count, targets)
    passes = 3 + config.model.activation_checkpointing
    extra = 0
    if (
        config.objective.contrastive_weight
        and (config.objective.contrastive_batch or train.global_batch_size) > per_pass
    ):
        extra = macs_per_clip(size, config.data.frames, config.data.size, masks.visible_count, 0)
    step_flops = 2 * (passes * forward + extra) * train.global_batch_size
    need = footprint.footprint(config, Place(0, gpus, 0, torch.device("cuda")))
    parameters = footprint.parameters(config)
    seconds = step_flops / gpus / flops
    lines = {
        "model": f"{config.model.size}, {parameters / 1e6:.0f} million parameters",
        "tokens": masks.describe(),
        "batch": f"{train.global_batch_size} = {gpus} GPUs x {accumulation} micro steps x {train.micro_batch_size}",
        "a clip": f"{forward / 1e9:.1f} G multiply-accumulates forward"
        + (f", and {extra / 1e9:.1f} G for the first pass of the cached contrast" if extra else ""),
        "a step": f"{step_flops / 1e15:.2f} PFLOP, {seconds:.2f} s at {flops / 1e12:.0f} TFLOP/s a GPU (assumed)",
        "state": f"{need.state / GIB:.1f} GiB a GPU at ZeRO {need.stage} (estimate)"
        + (f", and {need.host / GIB:.1f} GiB of the host's memory a GPU" if need.host else ""),
        "activations": f"{need.activations / GIB:.1f} GiB a GPU (estimate)",
        "checkpoint": f"{12 * parameters / 1e9:.1f} GB each",
    }
    if train.steps:
        lines["the run"] = f"{train.steps} steps, {train.steps * seconds / 3600:.1f} h, "
        lines["the run"] += f"{train.steps * seconds * gpus / 3600:.0f} GPU hours, without guidance and data waits"
    width = max(map(len, lines))
    return "\n".join(f"{name:>{width}}  {text}" for name, text in lines.items())


def _advice(config: Config, gpus: int) -> str:
    """What would work instead: each was tried."""
    train = config.train
    batch, repeats = train.global_batch_size, config.data.repeated_augmentation
    found = []
    micro = [m for m in range(train.micro_batch_size, 0, -1) if batch % (m * gpus) == 0 and m % repeats == 0]
    if micro:
        found.append(f"train.micro_batch_size={micro[0]}")
    fewer = [n for n in range(gpus, 0, -1) if _fits(config, n)]
    more = [n for n in range(gpus + 1, batch + 1) if _fits(config, n)]
    if counts := [*fewer[:1], *more[:1]]:
        found.append(f"{' or '.join(map(str, counts))} GPUs")
    whole = train.micro_batch_size * gpus
    negatives = config.objective.contrastive_batch
    others = [b for b in (batch // whole * whole, -(-batch // whole) * whole) if b]
    if fitting := [b for b in others if not negatives or b % negatives == 0]:
        found.append(f"train.global_batch_size={' or '.join(map(str, fitting))}")
    return "use " + ", or ".join(found)


def _fits(config: Config, gpus: int) -> bool:
    train = build.for_processes(config, gpus).train
    return train.global_batch_size % (train.micro_batch_size * gpus) == 0
