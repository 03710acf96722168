"""The end of a step: decide whether its update is made, make it, and read its metrics.

The host waits for the device once per step, here, after the update is queued: the loss and the decision arrive
together. So the device decides where the optimizer allows it: torch's fused Adam skips an update by a flag on the
device, its step count included. Where Adam runs on the host (CPU runs, offload) the host decides.

DeepSpeed 0.19's wrappers wait too: each reads the gradient norm on the host before it queues Adam's kernels (only
stage 0 in fp32 does not). That idles the device while some 50 kernels are launched, 10 us each: 0.5 ms of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tgm_scale.engine import state as engine_state
from tgm_scale.engine.build import discard_update, norm_after, norm_before


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step."""

    metrics: list[float]  # as passed in, read from the device
    loss: float
    grad_norm: float | None  # before clipping; None where it is not finite
    refusal: str | None  # why the update was not made; None where it was


def make_update(engine: Any, metrics_F: Tensor, loss: Tensor, limit: float) -> Outcome:
    """Make the update that the gradients stand for, or none where the loss is not finite or above `limit`, or a
    gradient is not finite: then weights, moments and Adam's count stay as they were, and DeepSpeed's counters advance.

    metrics_F: float64 [F] on the device, handed through. loss: float64 scalar, the same on every rank. Collective."""
    before = norm_before(engine)
    fit = torch.isfinite(loss) & (loss <= limit)
    if before is not None:
        fit = fit & torch.isfinite(before)
    if _device_decides(engine):
        setattr(engine_state.adam(engine), "found_inf", (~fit).float())  # noqa: B010 - as torch's GradScaler does
        engine.step()
    elif bool(fit):
        engine.step()
    else:
        discard_update(engine)
    norm = norm_after(engine, before).to(metrics_F).reshape(())
    # the step's one wait for the device
    *metrics, whole, grad_norm = torch.cat([metrics_F, torch.stack([loss, norm])]).tolist()
    refusal = _refusal(whole, limit, grad_norm, bool(engine.was_step_applied()))
    return Outcome(metrics, whole, grad_norm if math.isfinite(grad_norm) else None, refusal)


def _device_decides(engine: Any) -> bool:
    """Whether Adam can leave out an update by a flag on the device."""
    adam = engine_state.adam(engine)
    return isinstance(adam, torch.optim.AdamW) and bool(adam.defaults["fused"])


def _refusal(loss: float, limit: float, grad_norm: float, applied: bool) -> str | None:
    if not math.isfinite(loss):
        return "loss not finite"
    if loss > limit:
        return "spike"
    return None if applied and math.isfinite(grad_norm) else "gradient not finite"
