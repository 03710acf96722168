"""The DeepSpeed engine around the joint module: the one place where DeepSpeed is configured and started.

The user's JSON says how to shard, offload and communicate. What the run derives (batch sizes, precision, clipping) is
filled in; a value that contradicts it is an error that names both places.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from tgm_scale.runtime.compat import quiet_warnings
from tgm_scale.runtime.distributed import Place, set_rendezvous
from tgm_scale.training.optim import parameter_groups

_OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}  # and the lowest stage that has it
_SECTIONS = ("zero_optimization", "bf16", "fp16")
_OURS = {
    "optimizer": "section optim",
    "scheduler": "section optim",
    "activation_checkpointing": "key model.activation_checkpointing",
    "amp": "key train.precision",
    "elasticity": "keys train.global_batch_size and train.micro_batch_size",
    "checkpoint": "section checkpoint",
}


@dataclass(frozen=True)
class EnginePlan:
    """What the run asks of the engine, in the run's own terms."""

    stage: int | None
    config_file: str | None
    global_batch_size: int
    micro_batch_size: int
    world_size: int
    precision: str  # fp32, bf16 or fp16
    clip_norm: float | None
    weight_decay: float
    betas: tuple[float, float]

    @property
    def accumulation(self) -> int:
        return self.global_batch_size // (self.micro_batch_size * self.world_size)


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` is bf16 on a GPU and fp32 on a CPU. Raises ValueError for fp16 on a CPU."""
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("train.precision=fp16 needs a GPU: use fp32 or bf16 on a CPU")
    return precision


def engine_config(plan: EnginePlan) -> dict[str, Any]:
    """The DeepSpeed configuration of the run: the user's JSON completed with what the run derives.

    Raises ValueError where the two contradict each other or the batch does not divide."""
    per_pass = plan.micro_batch_size * plan.world_size
    if plan.global_batch_size % per_pass:
        raise ValueError(
            f"train.global_batch_size={plan.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{plan.micro_batch_size} x {plan.world_size} processes = {per_pass}: change the micro batch, or the "
            "number of processes"
        )
    config = _read_json(plan.config_file) if plan.config_file else {}
    origin = plan.config_file or "DeepSpeed's defaults"
    derived: dict[str, Any] = {
        "train_batch_size": plan.global_batch_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": plan.clip_norm or 0.0,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
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
    for key, owner in _OURS.items():
        if key in config:
            raise ValueError(f"{origin}: '{key}' belongs to the run's own {owner}: remove it from the JSON")
    config["zero_allow_untested_optimizer"] = True
    return config


def _set_stage(zero: dict[str, Any], plan: EnginePlan, origin: str) -> None:
    """Fill in the stage, and refuse what it cannot do."""
    place = f"{origin}: zero_optimization"
    if plan.stage is not None:
        given = zero.get("stage", "auto")
        if given not in ("auto", plan.stage):
            raise ValueError(f"{place}.stage={given} contradicts deepspeed.stage={plan.stage}")
        zero["stage"] = plan.stage
    elif zero.get("stage", "auto") == "auto":
        zero["stage"] = 0
    for key, lowest in _OFFLOADS.items():
        section = zero.get(key) or {}
        if not isinstance(section, dict):
            raise ValueError(f'{place}.{key}={section}: wanted an object, such as {{"device": "cpu"}}')
        device = section.get("device", "none")
        if device == "nvme":
            raise ValueError(
                f"{place}.{key}.device=nvme: DeepSpeed cannot set state that it swapped to disk, so the run could not "
                f'go on from a checkpoint (its own comes back as fresh weights, without an error): use "cpu"'
            )
        if device == "none":
            zero.pop(key, None)  # DeepSpeed takes the section's presence for a wish
        elif zero["stage"] < lowest:
            source = "zero_optimization.stage" if plan.stage is None else "deepspeed.stage"
            raise ValueError(f"{place}.{key} needs stage {lowest} or higher, {source}={zero['stage']}")


def _set_precision(config: dict[str, Any], plan: EnginePlan, origin: str) -> None:
    for name in ("bf16", "fp16"):
        section = config.setdefault(name, {})
        wanted = plan.precision == name
        if section.get("enabled", "auto") not in ("auto", wanted):
            raise ValueError(
                f"{origin}: {name}.enabled={section['enabled']} contradicts train.precision={plan.precision}"
            )
        section["enabled"] = wanted
    if plan.precision == "bf16":
        # off by default in DeepSpeed: one inf in an accumulated gradient would poison Adam's moments for good
        config["bf16"].setdefault("check_grad_overflow", True)


def _read_json(path: str) -> dict[str, Any]:
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"deepspeed.config={path}: no such file")
    try:
        tree = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed.config={path}: not valid JSON: {error}") from None
    if not isinstance(tree, dict) or not all(isinstance(tree.get(key, {}), dict) for key in _SECTIONS):
        raise ValueError(f"deepspeed.config={path}: wanted an object, and in it objects for {', '.join(_SECTIONS)}")
    return tree


def start_processes(place: Place) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs."""
    set_rendezvous(place)
    if place.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    else:
        torch.cuda.set_device(place.device)
    # ninja, with which DeepSpeed builds its extensions, lies beside the python of a virtual environment
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    quiet_warnings()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if place.device.type == "cpu":
        # a C++ extension that DeepSpeed would compile for 20 s at every fresh start, and fail without a compiler
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="nccl" if place.device.type == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False
    )


def stop_processes() -> None:
    """Leave the process group after a run that ended well. All ranks come here, or none."""
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def build_engine(
    module: nn.Module, plan: EnginePlan, device: torch.device, groups: list[dict[str, Any]] | None = None
) -> Any:
    """A DeepSpeedEngine over `module` with AdamW; the learning rate is set by the loop at each step.

    groups: of parameters, each with its `weight_decay` and maybe a `lr_scale`; default: matrices decay, others not."""
    import deepspeed

    config = engine_config(plan)
    groups = parameter_groups(module, plan.weight_decay) if groups is None else groups
    optimizer = _optimizer(groups, plan, config, device)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=copy.deepcopy(config))
    except ValidationError as error:  # a key that DeepSpeed does not know
        raise ValueError(f"deepspeed.config={plan.config_file}: {error}") from None
    if plan.precision != "fp32" and config["zero_optimization"]["stage"] == 0:
        # DeepSpeed 0.19's wrapper makes one Adam step on zero gradients to allocate the moments, so the first real
        # update would be bias-corrected as the second: 0.73 of its size (seen as a loss 0.1 off after one step)
        optimizer.state.clear()
    return engine


def _optimizer(groups: list[dict], plan: EnginePlan, config: dict[str, Any], device: torch.device) -> Any:
    if "offload_optimizer" in config["zero_optimization"]:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        try:
            adam = DeepSpeedCPUAdam(groups, lr=0.0, betas=plan.betas, adamw_mode=True)
        except RuntimeError as error:
            raise ValueError(
                f"deepspeed.config={plan.config_file}: offload_optimizer needs DeepSpeed's Adam for CPUs, which it "
                f"builds at the first start with a C++ compiler and ninja: {error.__cause__ or error}"
            ) from None
        adam.register_step_pre_hook(_forget_products)
        return adam
    return torch.optim.AdamW(groups, lr=0.0, betas=plan.betas, fused=device.type == "cuda")


def _forget_products(adam: Any, *_: object) -> None:
    """DeepSpeed's C++ Adam takes the powers of its betas as running products, which no checkpoint holds: a run that
    goes on would have the exact powers, 1e-7 apart. A fresh C++ object takes the powers, at every step."""
    given = adam.defaults
    adam.ds_opt_adam.create_adam(
        adam.opt_id, given["lr"], *given["betas"], given["eps"], given["weight_decay"], adam.adam_w_mode, False
    )


def set_learning_rate(engine: Any, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


def gradient_norm_before(engine: Any) -> float | None:
    """The global gradient norm where it must be read before engine.step(): at stage 0 in fp32 DeepSpeed keeps none,
    but the reduced gradients are still in place. None elsewhere."""
    if engine.zero_optimization_stage() > 0 or hasattr(engine.optimizer, "fp32_groups"):
        return None
    gradients = [p.grad for p in engine.module.parameters() if p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients)) if gradients else None


def gradient_norm_after(engine: Any, before: float | None) -> float | None:
    """The global gradient norm, before clipping, of the update just made."""
    norm = engine.get_global_grad_norm() if before is None else before
    return None if norm is None else float(norm)


def discard_update(engine: Any) -> None:
    """Complete a step without its update: gradients are cleared and counters advance, weights and moments stay.

    The same at every stage: all that DeepSpeed does around Adam is done, and Adam itself does nothing."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    adam.step = lambda closure=None: None
    try:
        engine.step()
    finally:
        del adam.step
