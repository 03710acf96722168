"""What a run will cost on a cluster: arithmetic, memory, time; before a job is queued."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tgm_scale.config.sections import Config, TrainingConfig
from tgm_scale.planning import footprint
from tgm_scale.planning.run_plan import RunPlan, layout_of, plan_pretraining
from tgm_scale.runtime.distributed import ProcessInfo

GIB = 2**30


@dataclass(frozen=True)
class Asked:
    """A run whose cost is asked for."""

    config: TrainingConfig
    plan: Callable[[ProcessInfo], RunPlan]
    together: int  # clips that share a micro batch
    negatives: int | None = None  # clips that are told apart by the contrast; None: there is none

    @classmethod
    def pretraining(cls, config: Config) -> Asked:
        objective, batch = config.objective, config.train.global_batch_size
        negatives = (objective.contrastive_batch or batch) if objective.contrastive_weight else None
        return cls(
            config, lambda process: plan_pretraining(config, process), config.data.repeated_augmentation, negatives
        )


def plan(asked: Asked, gpus: int, flops: float) -> str:
    """The plan in lines. Raises ValueError where the batch does not divide over the GPUs."""
    config = asked.config
    if not _fits(asked, gpus):
        raise ValueError(
            f"train.global_batch_size={config.train.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{config.train.micro_batch_size} x {gpus} GPUs: {_advice(asked, gpus)}"
        )
    run = asked.plan(_first_of(gpus))
    layout, masks, forward = run.layout, run.masker, run.macs_per_clip
    passes = 3 + config.model.activation_checkpointing
    extra = 0.0
    if asked.negatives and (layout.micro_batch * gpus) % asked.negatives:  # as JointStep has it
        extra = run.shape.macs(run.visible, 0)
    step_flops = 2 * (passes * forward + extra) * layout.global_batch
    need = footprint.footprint(run, config.model.activation_checkpointing)
    parameters, train = footprint.parameters(run.shape, decoder=masks is not None), config.train
    seconds = step_flops / gpus / flops
    lines = {
        "model": f"{config.model.size}, {parameters / 1e6:.0f} million parameters",
        "tokens": f"all {run.visible}" if masks is None else masks.summary(),
        "batch": f"{layout.global_batch} = {gpus} GPUs x {layout.accumulation} micro steps x {layout.micro_batch}",
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


def _advice(asked: Asked, gpus: int) -> str:
    """What would work instead: each was tried."""
    train, together = asked.config.train, asked.together
    batch = train.global_batch_size
    found = []
    micro = [m for m in range(train.micro_batch_size, 0, -1) if batch % (m * gpus) == 0 and m % together == 0]
    if micro:
        found.append(f"train.micro_batch_size={micro[0]}")
    fewer = [n for n in range(gpus, 0, -1) if _fits(asked, n)]
    more = [n for n in range(gpus + 1, batch + 1) if _fits(asked, n)]
    if counts := [*fewer[:1], *more[:1]]:
        found.append(f"{' or '.join(map(str, counts))} GPUs")
    whole = train.micro_batch_size * gpus
    negatives = asked.config.objective.contrastive_batch if isinstance(asked.config, Config) else None
    others = [b for b in (batch // whole * whole, -(-batch // whole) * whole) if b]
    if fitting := [b for b in others if not negatives or b % negatives == 0]:
        found.append(f"train.global_batch_size={' or '.join(map(str, fitting))}")
    return "use " + ", or ".join(found)


def _fits(asked: Asked, gpus: int) -> bool:
    try:
        layout_of(asked.config.train, asked.together, _first_of(gpus))
    except ValueError:
        return False
    return True


def _first_of(gpus: int) -> ProcessInfo:
    return ProcessInfo(0, gpus, 0, torch.device("cuda"))
