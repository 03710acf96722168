"""Ways to hold a model in less memory without changing what is learned: ZeRO stage, activation checkpointing, offload,
micro batch (docs/SCALING.md says how exactly results agree)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tgm_scale.config.sections import TrainingConfig
from tgm_scale.planning.cost import Cost, CostQuery, cost_of, device_bytes
from tgm_scale.planning.footprint import ROOM

_FILES = {"optimizer": "configs/deepspeed/zero2_offload.json", "all": "configs/deepspeed/zero3_offload_small.json"}


@dataclass(frozen=True)
class MemoryStrategy:
    """ZeRO stage, activation checkpointing and offload of a run. offload: one of footprint.OFFLOADS; with it the stage
    is that of the JSON that comes with the project."""

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
    def summary(self) -> str:
        words = [f"ZeRO {self.stage}"]
        words += ["activation checkpointing"] if self.checkpointing else []
        words += {"none": [], "optimizer": ["optimizer offloaded"], "all": ["weights and optimizer offloaded"]}[
            self.offload
        ]
        return ", ".join(words)

    def of(self, query: CostQuery) -> CostQuery:
        config = query.config
        model = config.model.model_copy(update={"activation_checkpointing": self.checkpointing})
        file = _FILES.get(self.offload)
        engine = config.deepspeed.model_copy(update={"config": file, "stage": None if file else self.stage})
        return dataclasses.replace(query, config=config.model_copy(update={"model": model, "deepspeed": engine}))


# from the fastest to the slowest. Stages 2 and 3 shard over processes: with one there is nothing to shard
_CANDIDATES = (
    MemoryStrategy(1),
    MemoryStrategy(2),
    MemoryStrategy(3),
    MemoryStrategy(1, True),
    MemoryStrategy(2, True),
    MemoryStrategy(3, True),
    MemoryStrategy(2, True, "optimizer"),
    MemoryStrategy(3, True, "all"),
)


def candidate_strategies(config: TrainingConfig, gpus: int) -> list[MemoryStrategy]:
    """Return the strategies that the configuration can take."""
    found = [one for one in _CANDIDATES if gpus > 1 or one.stage == 1 or one.offload != "none"]
    return [one for one in found if one.stage < 3 or not config.model.compile]


def with_micro(query: CostQuery, micro: int) -> CostQuery:
    train = query.config.train.model_copy(update={"micro_batch_size": micro})
    return dataclasses.replace(query, config=query.config.model_copy(update={"train": train}))


def micro_batches(query: CostQuery, gpus: int) -> list[int]:
    """Return the micro batches that divide a GPU's share of the batch, the largest first."""
    share, rest = divmod(query.config.train.global_batch_size, gpus)
    if rest:
        return []
    small = [m for m in range(1, math.isqrt(share) + 1) if share % m == 0]
    return [m for m in sorted({*small, *(share // m for m in small)}, reverse=True) if m % query.together == 0]


def largest_that_fits(query: CostQuery, gpus: int, memory: float) -> tuple[CostQuery, Cost] | None:
    """Return the query with the largest micro batch that fits these bytes a GPU, and its cost; None if none does."""
    checkpointing = query.config.model.activation_checkpointing
    for micro in micro_batches(query, gpus):
        tried = with_micro(query, micro)
        cost = cost_of(tried, gpus)
        if device_bytes(cost, checkpointing) <= ROOM * memory:
            return tried, cost
    return None
