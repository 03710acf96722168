"""AdamW's groups and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

BASE_BATCH = 256  # base_lr is meant for this global batch and scaled linearly (Goyal et al. 2017, section 2.1)


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0, then half a cosine down to `last` (Loshchilov and Hutter 2017). No update has the rate 0:
    where `last` is 0, the last one has the cosine's rate of half a step before its end."""

    peak: float
    last: float
    warmup_steps: int
    steps: int

    @classmethod
    def of(cls, base_lr: float, min_lr: float, warmup_share: float, steps: int, global_batch_size: int) -> Schedule:
        scale = global_batch_size / BASE_BATCH
        return cls(base_lr * scale, min_lr * scale, round(warmup_share * steps), steps)

    def __call__(self, step: int) -> float:
        """Learning rate of the update that makes step `step` (the first is 1) complete."""
        if step <= self.warmup_steps:
            return self.peak * step / self.warmup_steps
        end = self.steps if self.last else self.steps - 0.5
        done = (min(step, end) - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.last + (self.peak - self.last) * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups: matrices decay; biases, norms, tokens and the temperature do not.

    Decided by the shape at construction, before ZeRO-3 partitions the parameters."""
    decay: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        one_dimensional = sum(side > 1 for side in parameter.shape) <= 1 or name.endswith("bias")
        (plain if one_dimensional else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": weight_decay, "name": "decay"},
        {"params": plain, "weight_decay": 0.0, "name": "no_decay"},
    ]
    return [group for group in groups if group["params"]]
