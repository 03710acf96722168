"""The DeepSpeed configuration: the user's JSON, completed by values derived from the run.

The JSON says how to shard, offload and communicate. Derived values (batch sizes, precision, clipping) are filled in; a
contradicting value is an error that names both places. Also the optimizer's parameter groups, and the learning rate of
a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from tgm_scale.config import packaged
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import keys as engine_keys
from tgm_scale.runtime.files import like
from tgm_scale.runtime.outside.json_text import json_without_doubles

_OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}  # and the lowest stage that supports it


@dataclass(frozen=True)
class EnginePlan:
    """The run's requirements of the engine, in the run's own terms."""

    stage: int | None
    config_file: str | None
    layout: BatchLayout
    precision: str  # fp32 or bf16
    clip_norm: float | None
    weight_decay: float
    betas: tuple[float, float]
    optimizer: str = "adamw"  # or lion: optim.name

    @property
    def moments(self) -> int:
        """Number of moments that the optimizer keeps per weight."""
        return 1 if self.optimizer == "lion" else 2

    @cached_property
    def config(self) -> dict[str, Any]:
        """Complete DeepSpeed configuration, not to be changed. Raises ValueError as `engine_config` does."""
        return engine_config(self)

    @property
    def zero(self) -> dict[str, Any]:
        return self.config["zero_optimization"]


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return the precision, with `auto` resolved to bf16 on a GPU and fp32 on a CPU."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


def engine_config(plan: EnginePlan) -> dict[str, Any]:
    """Return the run's DeepSpeed configuration: the user's JSON completed with derived values.

    Raises ValueError where the two contradict each other."""
    origin = plan.config_file or "DeepSpeed's defaults"
    config = engine_keys.supported_keys(_read_json(plan.config_file), origin) if plan.config_file else {}
    derived: dict[str, Any] = {
        "train_batch_size": plan.layout.global_batch,
        "train_micro_batch_size_per_gpu": plan.layout.micro_batch,
        "gradient_accumulation_steps": plan.layout.accumulation,
        "gradient_clipping": plan.clip_norm or 0.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
        # else each forward pass and each micro step waits for all work queued on the GPU, among it the copies of the
        # next step and the towers' own stream
        "timers": {"throughput": {"enabled": False}},
    }
    sources = {
        "train_batch_size": "train.global_batch_size",
        "train_micro_batch_size_per_gpu": "train.micro_batch_size",
        "gradient_accumulation_steps": "train.global_batch_size / (train.micro_batch_size x processes)",
        "gradient_clipping": "optim.clip_norm",
    }
    for key, value in derived.items():
        given = config.get(key, "auto")
        if given != "auto" and given != value and key in sources:
            raise ValueError(
                f'{origin}: {key}={given} contradicts {sources[key]}={value}: remove it from the JSON, or write "auto"'
            )
        config[key] = value
    _set_precision(config, plan, origin)
    zero = config.setdefault("zero_optimization", {})
    _set_stage(zero, plan, origin)
    if plan.optimizer != "adamw" and "offload_optimizer" in zero:
        raise ValueError(
            f"{origin}: zero_optimization.offload_optimizer does not go with optim.name={plan.optimizer}: on the host "
            "only DeepSpeed's Adam for CPUs was tried with this project's checkpoints: remove it (one moment takes "
            "less memory), or set optim.name=adamw"
        )
    _sum_in_fp32(config, plan)
    config["zero_allow_untested_optimizer"] = True
    return config


def _set_stage(zero: dict[str, Any], plan: EnginePlan, origin: str) -> None:
    """Fill in the stage, and refuse offloads that it does not support."""
    place = f"{origin}: zero_optimization"
    if plan.stage is not None:
        given = zero.get("stage", "auto")
        if given not in ("auto", plan.stage):
            raise ValueError(f"{place}.stage={given} contradicts deepspeed.stage={plan.stage}")
        zero["stage"] = plan.stage
    elif zero.get("stage", "auto") == "auto":
        # in bf16 stage 0 sums gradients in bf16; stage 1 does so in fp32 and costs one process nothing else
        zero["stage"] = 1 if plan.precision == "bf16" else 0
    for key, lowest in _OFFLOADS.items():
        section = zero.get(key) or {}
        device = section.get("device", "none")
        if device == "nvme":
            raise ValueError(
                f"{place}.{key}.device=nvme: DeepSpeed cannot set state that it swapped to disk, so the run could not "
                f'resume from a checkpoint (its own comes back as fresh weights, without an error): use "cpu"'
            )
        if device == "none":
            zero.pop(key, None)  # DeepSpeed takes the section's presence as a request
        elif zero["stage"] < lowest:
            source = "zero_optimization.stage" if plan.stage is None else "deepspeed.stage"
            raise ValueError(f"{place}.{key} needs stage {lowest} or higher, {source}={zero['stage']}")


def _set_precision(config: dict[str, Any], plan: EnginePlan, origin: str) -> None:
    section, wanted = config.setdefault("bf16", {}), plan.precision == "bf16"
    if section.get("enabled", wanted) != wanted:
        raise ValueError(f"{origin}: bf16.enabled={section['enabled']} contradicts train.precision={plan.precision}")
    section["enabled"] = wanted
    if wanted:
        # else one gradient that is not finite would stay in Adam's moments; off by default in older DeepSpeeds
        section["check_grad_overflow"] = True


def _sum_in_fp32(config: dict[str, Any], plan: EnginePlan) -> None:
    """Sum gradients of bf16 runs in fp32, over micro steps and ranks, unless the JSON says otherwise: else the loss
    depends on the accumulation. DeepSpeed's stage 0 can only sum in bf16."""
    if plan.precision == "bf16" and config["zero_optimization"]["stage"] > 0:
        config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        config.setdefault("communication_data_type", "fp32")
        # at stage 1 the bf16 gradient is freed once it is added: 2 bytes per parameter less
        config["bf16"].setdefault("immediate_grad_update", True)


def not_used(config_file: str | None) -> list[str]:
    """Return a line for each key of the JSON without effect, because the run itself does the same."""
    return engine_keys.not_used(_read_json(config_file), config_file) if config_file else []


def _read_json(path: str) -> dict[str, Any]:
    file = packaged(path, ".json")
    if not file.is_file():
        raise ValueError(f"deepspeed.config={path}: no such file{like(path)}")
    tree = json_without_doubles(file, f"deepspeed.config={path}")
    if not isinstance(tree, dict):
        raise ValueError(f"deepspeed.config={path}: wanted an object, found {type(tree).__name__}")
    return tree


BASE_BATCH = 256  # reference batch of base_lr, which scales linearly (Goyal et al. 2017, section 2.1)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then a half cosine down to `last` (Loshchilov and Hutter 2017). No update has rate 0:
    where `last` is 0, the last update has the cosine's rate half a step before its end."""

    peak: float
    last: float
    warmup_steps: int
    steps: int

    @classmethod
    def of(cls, base_lr: float, min_lr: float, warmup_share: float, steps: int, global_batch_size: int) -> Schedule:
        scale = global_batch_size / BASE_BATCH
        return cls(base_lr * scale, min_lr * scale, round(warmup_share * steps), steps)

    def __call__(self, step: int) -> float:
        """Return the learning rate of the update that completes step `step` (the first is 1)."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        end = self.steps if self.last else self.steps - 0.5
        done = (min(step, end) - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.last + (self.peak - self.last) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(module: nn.Module, weight_decay: float, apart: tuple[str, float] = ("", 1.0)) -> list[dict]:
    """Return two groups: matrices decay; biases, norms, tokens and the temperature do not. Two more where `apart`, a
    prefix of parameter names and a scale, sets a learning rate other than 1 times the others'.

    Decided by the shape at construction, before ZeRO-3 partitions the parameters."""
    prefix, scale = apart
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        one_dimensional = sum(side > 1 for side in parameter.shape) <= 1 or name.endswith("bias")
        found.setdefault((scale != 1 and name.startswith(prefix), one_dimensional), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": 0.0 if one_dimensional else weight_decay,
            "name": ("no_decay" if one_dimensional else "decay") + (f" of {prefix}" if own_rate else ""),
            **({"lr_scale": scale} if own_rate else {}),
        }
        for (own_rate, one_dimensional), parameters in sorted(found.items(), key=lambda item: item[0])
    ]
