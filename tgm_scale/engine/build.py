"""The DeepSpeed engine around the joint module: the only place where DeepSpeed is started and stepped.

The end of a step decides whether to make its update, makes it, and reads its metrics. The host waits for the device
once per step, here, after the update is queued: loss and decision arrive together. So the device decides where the
optimizer allows it: torch's fused Adam skips an update, its step count included, by a flag on the device. Where Adam
runs on the host (CPU runs, offload), and for Lion, the host decides.

DeepSpeed 0.19's wrappers wait, too: each reads the gradient norm on the host before it queues Adam's kernels (except
stage 0 in fp32). This idles the device while some 50 kernels are launched, 10 us each: 0.5 ms of a step.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from tgm_scale.engine import state as engine_state
from tgm_scale.engine.extensions import load_cpu_adam, prepare_deepspeed
from tgm_scale.engine.plan import EnginePlan, parameter_groups
from tgm_scale.runtime import rendezvous
from tgm_scale.runtime.compat import prepare_timm
from tgm_scale.runtime.distributed import ProcessInfo, refuse_hidden_gpus, set_rendezvous


def start_processes(process: ProcessInfo, seconds: float = 600, patience: float | None = None) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    seconds: timeout for all processes to join; patience: timeout of a collective, by default DeepSpeed's 10 minutes.
    Raises TimeoutError if some did not join, ValueError if the launcher's variables or GPUs are wrong."""
    refuse_hidden_gpus(process)
    set_rendezvous(process)
    gpu = None
    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
        gpu = str(torch.cuda.get_device_properties(process.device).uuid)
    prepare_deepspeed(process.device)
    import deepspeed
    from deepspeed.constants import default_pg_timeout
    from deepspeed.utils import groups

    timeout = default_pg_timeout if patience is None else timedelta(seconds=patience)
    store = rendezvous.meet(process, seconds, gpu)
    torch.distributed.init_process_group(
        "nccl" if process.device.type == "cuda" else "gloo",
        store=store,
        rank=process.rank,
        world_size=process.world_size,
        timeout=timeout,
        device_id=process.device if process.device.type == "cuda" and process.world_size > 1 else None,
    )
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)  # uses the existing group
    # DeepSpeed reduces and gathers in its own group, which it would create with the backend's timeout: NCCL's 10
    # minutes, after which NCCL ends the process before the watchdog has named the rank that is waited for
    groups._WORLD_GROUP = torch.distributed.new_group(list(range(process.world_size)), timeout=timeout)


def stop_processes() -> None:
    """Leave the process group after a successful run. All ranks call this, or none."""
    import deepspeed

    torch.distributed.barrier()
    deepspeed.comm.destroy_process_group()  # also its own references to the group: a later run here has another


def build_engine(
    module: nn.Module,
    plan: EnginePlan,
    device: torch.device,
    groups: list[dict[str, Any]] | None = None,
    cores: int = 1,
) -> Any:
    """Return a DeepSpeedEngine over `module` with the plan's optimizer. The loop sets the learning rate at each step.

    groups: parameter groups, each with `weight_decay` and optionally `lr_scale`; default: only matrices decay.
    cores: number that Adam may use where it runs on the host."""
    import deepspeed

    groups = parameter_groups(module, plan.weight_decay) if groups is None else groups
    optimizer = _optimizer(groups, plan, device, cores)
    try:
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=copy.deepcopy(plan.config))
    except ValidationError as error:  # a key unknown to DeepSpeed
        raise ValueError(f"deepspeed.config={plan.config_file}: {error}") from None
    if plan.precision == "bf16" and plan.zero["stage"] == 0:
        # DeepSpeed 0.19's wrapper makes an Adam step on zero gradients to allocate the moments, so the first real
        # update would be bias-corrected as the second: 0.73 of its size (seen as a loss 0.1 off after one step)
        optimizer.state.clear()
    engine_state.allocate_moments(engine)
    return engine


def _optimizer(groups: list[dict], plan: EnginePlan, device: torch.device, cores: int) -> Any:
    if "offload_optimizer" in plan.zero:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        try:
            load_cpu_adam(verbose=torch.distributed.get_rank() == 0)
            adam = DeepSpeedCPUAdam(groups, lr=0.0, betas=plan.betas, adamw_mode=True)
        except RuntimeError as error:
            raise ValueError(
                f"deepspeed.config={plan.config_file}: offload_optimizer needs DeepSpeed's Adam for CPUs, which it "
                f"builds at the first start with a C++ compiler and ninja: {error.__cause__ or error}"
            ) from None
        adam.register_step_pre_hook(_forget_products)
        _spread(adam, cores)
        return adam
    if plan.optimizer == "lion":
        prepare_timm()
        from timm.optim.lion import Lion

        # Chen et al. 2023, arXiv 2302.06675, algorithm 2. Elementwise, so ZeRO's flat partitions change nothing
        return Lion(groups, lr=0.0, betas=plan.betas)
    return torch.optim.AdamW(groups, lr=0.0, betas=plan.betas, fused=wants_fused(device))


def wants_fused(device: torch.device) -> bool:
    """Return whether Adam is one fused kernel. Not on a CPU, where it would round otherwise than earlier runs did."""
    return device.type == "cuda"


def _forget_products(adam: Any, *_: object) -> None:
    """Recreate DeepSpeed's C++ Adam before each step: it keeps the powers of its betas as running products, which no
    checkpoint holds, so that a resumed run with exact powers would be 1e-7 apart. A fresh object computes the
    powers."""
    given = adam.defaults
    adam.ds_opt_adam.create_adam(
        adam.opt_id, given["lr"], *given["betas"], given["eps"], given["weight_decay"], adam.adam_w_mode, False
    )


def _spread(adam: Any, cores: int) -> None:
    """Let DeepSpeed's elementwise C++ Adam use `cores` threads; the rest of the process keeps its own number, on which
    sums depend. Launchers give each process a single thread (OMP_NUM_THREADS)."""
    usual = torch.get_num_threads()
    if cores > usual:
        adam.register_step_pre_hook(lambda *_: torch.set_num_threads(cores))
        adam.register_step_post_hook(lambda *_: torch.set_num_threads(usual))


def set_learning_rate(engine: Any, value: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = value * group.get("lr_scale", 1.0)


def discard_update(engine: Any) -> None:
    """Complete a step without its update: clear gradients and advance counters; weights and moments stay.

    Works at every stage: DeepSpeed does everything around Adam, and Adam itself does nothing."""
    adam: Any = engine_state.adam(engine)
    adam.step = lambda closure=None: None
    try:
        engine.step()
    finally:
        del adam.step


@dataclass(frozen=True)
class Outcome:
    """Outcome of a training step."""

    metrics: list[float]  # as passed in, read from the device
    loss: float
    grad_norm: float | None  # before clipping; None where it is not finite
    refusal: str | None  # why the update was not made; None where it was


def make_update(engine: Any, metrics_F: Tensor, loss: Tensor, limit: float) -> Outcome:
    """Make the update from the gradients, or skip it where the loss is not finite or above `limit`, or a gradient is
    not finite: then weights, moments and Adam's step count stay, and DeepSpeed's counters advance.

    metrics_F: float64 [F] on the device, passed through. loss: float64 scalar, the same on every rank. Collective."""
    adam = engine_state.adam(engine)
    fit, before = torch.isfinite(loss) & (loss <= limit), None
    if engine.zero_optimization_stage() == 0 and not hasattr(engine.optimizer, "fp32_groups"):
        # in fp32 DeepSpeed keeps no norm at stage 0, but the reduced gradients are still in place
        before = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
        fit = fit & torch.isfinite(before)
    if isinstance(adam, torch.optim.AdamW) and adam.defaults["fused"]:  # by a flag on the device
        setattr(adam, "found_inf", (~fit).float())  # noqa: B010 - as torch's GradScaler does
        engine.step()
    elif bool(fit):
        engine.step()
    else:
        discard_update(engine)
    # before clipping; DeepSpeed's is not finite where it skipped the step
    norm = torch.as_tensor(engine.get_global_grad_norm() if before is None else before).to(metrics_F).reshape(())
    # the step's one wait for the device
    *metrics, whole, grad_norm = torch.cat([metrics_F, torch.stack([loss, norm])]).tolist()
    refusal = _refusal(whole, limit, grad_norm, bool(engine.was_step_applied()))
    return Outcome(metrics, whole, grad_norm if math.isfinite(grad_norm) else None, refusal)


def _refusal(loss: float, limit: float, grad_norm: float, applied: bool) -> str | None:
    if not math.isfinite(loss):
        return "loss not finite"
    if loss > limit:
        return "spike"
    return None if applied and math.isfinite(grad_norm) else "gradient not finite"
