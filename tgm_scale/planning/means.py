"""Ways to hold a model in less memory that leave what is learned as it is: ZeRO stage, activation checkpointing,
offload, micro batch (docs/SCALING.md has how exactly)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tgm_scale.config.sections import TrainingConfig
from tgm_scale.planning.cost import Asked, Cost, cost_of, device_bytes
from tgm_scale.planning.footprint import ROOM

_FILES = {"optimizer": "configs/deepspeed/zero2_offload.json", "all": "configs/deepspeed/zero3_offload_small.json"}


@dataclass(frozen=True)
class Means:
    """offload: one of footprint.OFFLOADS; with it the stage is that of the JSON that comes with the project."""

    stage: int
    checkpointing: bool = False
    offload: str = "none"

    @property
    def overrides(self) -> list[str]:
        file = _FILES.get(self.offload)
        stage = [f"deepspeed.config={file}", "deepspeed.stage=null"] if file else []
        stage = stage or ["deepspeed.config=null", f"deepspeed.stage={self.stage}"]
        return [*stage, f"model.activation_checkpointing={str(self.checkpointing).lower()}"]

    @property
    def said(self) -> str:
        words = [f"ZeRO {self.stage}"]
        words += ["activation checkpointing"] if self.checkpointing else []
        words += {"none": [], "optimizer": ["optimizer offloaded"], "all": ["weights and optimizer offloaded"]}[
            self.offload
        ]
        return ", ".join(words)

    def of(self, asked: Asked) -> Asked:
        config = asked.config
        model = config.model.model_copy(update={"activation_checkpointing": self.checkpointing})
        file = _FILES.get(self.offload)
        engine = config.deepspeed.model_copy(update={"config": file, "stage": None if file else self.stage})
        return dataclasses.replace(asked, config=config.model_copy(update={"model": model, "deepspeed": engine}))


# from the fastest to the slowest. Stages 2 and 3 shard over processes: with one there is nothing to shard
_LADDER = (
    Means(1),
    Means(2),
    Means(3),
    Means(1, True),
    Means(2, True),
    Means(3, True),
    Means(2, True, "optimizer"),
    Means(3, True, "all"),
)


def ladder(config: TrainingConfig, gpus: int) -> list[Means]:
    """Those that the configuration can take."""
    found = [one for one in _LADDER if gpus > 1 or one.stage == 1 or one.offload != "none"]
    return [one for one in found if one.stage < 3 or not config.model.compile]


def with_micro(asked: Asked, micro: int) -> Asked:
    train = asked.config.train.model_copy(update={"micro_batch_size": micro})
    return dataclasses.replace(asked, config=asked.config.model_copy(update={"train": train}))


def micro_batches(asked: Asked, gpus: int) -> list[int]:
    """Those that divide a GPU's share of the batch, the largest first."""
    share, rest = divmod(asked.config.train.global_batch_size, gpus)
    if rest:
        return []
    small = [m for m in range(1, math.isqrt(share) + 1) if share % m == 0]
    return [m for m in sorted({*small, *(share // m for m in small)}, reverse=True) if m % asked.together == 0]


def largest_that_fits(asked: Asked, gpus: int, memory: float) -> tuple[Asked, Cost] | None:
    """With the largest micro batch that fits into so many bytes of each GPU."""
    checkpointing = asked.config.model.activation_checkpointing
    for micro in micro_batches(asked, gpus):
        tried = with_micro(asked, micro)
        cost = cost_of(tried, gpus)
        if device_bytes(cost, checkpointing) <= ROOM * memory:
            return tried, cost
    return None
