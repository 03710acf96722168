"""Cost of a training step, known before a job is queued: arithmetic and bytes sent; and which batches divide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tgm_scale.assembly.objective import needs_captions, pair_bytes
from tgm_scale.assembly.run_plan import RunPlan, layout_of, plan_pretraining
from tgm_scale.config.sections import Config, TrainingConfig
from tgm_scale.planning.footprint import Footprint, footprint, parameters_of
from tgm_scale.planning.tower_cost import TowerCost, tower_cost
from tgm_scale.planning.update_memory import MAX_LIVE
from tgm_scale.runtime.distributed import ProcessInfo


@dataclass(frozen=True)
class CostQuery:
    """A run whose cost is to be estimated."""

    config: TrainingConfig
    plan: Callable[[Any, ProcessInfo], RunPlan]  # from the configuration
    together: int  # clips that share a micro batch
    negatives: int | None = None  # clips of a group of the contrast; None: no contrast

    @classmethod
    def pretraining(cls, config: Config) -> CostQuery:
        objective, batch = config.objective, config.train.global_batch_size
        negatives = (objective.contrastive_batch or batch) if needs_captions(objective) else None
        return cls(config, plan_pretraining, config.data.repeated_augmentation, negatives)


@dataclass(frozen=True)
class Cost:
    """Cost of one step. forward, first_pass: multiply-accumulates of a clip; passes: forward and backward pass,
    counted in forward passes; flop: of all GPUs, without the towers."""

    run: RunPlan
    forward: float
    first_pass: float  # of the cached contrast; 0: one pass is enough
    passes: int
    flop: float
    towers: TowerCost
    parameters: int
    sent: float  # bytes that a GPU sends, and as many that it receives
    pairs: float = 0.0  # bytes of the coupled terms' matrices of clips and captions, whole on each GPU

    def beside(self, need: Footprint) -> float:
        """Return the bytes by which `pairs` raise the peak: with one pass they exist beside all activations; with two
        they are freed before the second begins, and the first keeps no activations."""
        return max(0.0, self.pairs - need.activations - need.update) if self.first_pass else self.pairs


def cost_of(query: CostQuery, gpus: int) -> Cost:
    """Return the cost of a step. Raises ValueError where the batch does not divide over the GPUs."""
    config = query.config
    if not _fits(query, gpus):
        raise ValueError(
            f"train.global_batch_size={config.train.global_batch_size} is not a multiple of train.micro_batch_size="
            f"{config.train.micro_batch_size} x {gpus} GPUs: {_advice(query, gpus)}"
        )
    run = query.plan(config, first_of(gpus))
    layout, checkpointing = run.layout, config.model.activation_checkpointing
    passes = 3 + checkpointing
    extra, at_once = 0.0, layout.micro_batch * gpus
    if query.negatives and (layout.micro_batch * gpus) % query.negatives:  # the rule of JointStep
        extra, at_once = run.encoder_macs, layout.global_batch
    pairs = (
        float(pair_bytes(config.objective) * at_once * (query.negatives or 0)) if isinstance(config, Config) else 0.0
    )
    flop = 2 * (passes * run.macs_per_clip + extra) * layout.global_batch
    towers = tower_cost(config, run) if isinstance(config, Config) else TowerCost()
    count = parameters_of(run)
    sent = sent_bytes(run, count, checkpointing)
    return Cost(run, run.macs_per_clip, extra, passes, flop, towers, count, sent, pairs)


def sent_bytes(run: RunPlan, count: int, checkpointing: bool) -> float:
    """Return the bytes that each GPU sends in a step, by rings: an all-reduce of x bytes sends 2x (W-1)/W, a
    reduce-scatter or an all-gather half of it (ZeRO, arXiv 1910.02054, section 7). Stages 0 and 1 reduce once a step,
    2 and 3 in each micro step. DeepSpeed reduces at stages 1 and 2 by all-reduces of whole buckets, unless its JSON
    says otherwise; at stage 3 weights stay gathered up to a limit, and each pass gathers those above it anew."""
    layout, stage, bf16, zero = run.layout, run.stage, run.engine.precision == "bf16", run.engine.zero
    share = (layout.world_size - 1) / layout.world_size
    weights, gradients = count * (2 if bf16 else 4), count * (2 if bf16 and stage == 0 else 4)
    if stage == 0:
        return share * 2 * gradients
    if stage < 3:
        reduced = gradients * (2 if zero.get("use_multi_rank_bucket_allreduce", True) else 1)
        return share * (reduced * (layout.accumulation if stage == 2 else 1) + weights)
    kept = min(1.0, zero.get("stage3_max_live_parameters", MAX_LIVE) / count)
    passes = kept + (2 + checkpointing) * layout.accumulation * (1 - kept)
    return share * (layout.accumulation * gradients + passes * weights)


def device_bytes(cost: Cost, checkpointing: bool) -> float:
    """Return the bytes on one GPU, including the frozen towers."""
    need = footprint(cost.run, checkpointing)
    return need.device + cost.towers.bytes + cost.beside(need)


def _advice(query: CostQuery, gpus: int) -> str:
    """Return settings that would divide; each was tried."""
    train, together = query.config.train, query.together
    batch = train.global_batch_size
    found = []
    micro = [m for m in range(train.micro_batch_size, 0, -1) if batch % (m * gpus) == 0 and m % together == 0]
    if micro:
        found.append(f"train.micro_batch_size={micro[0]}")
    fewer = [n for n in range(min(gpus, batch), 0, -1) if _fits(query, n)]
    more = [n for n in range(gpus + 1, batch + 1) if _fits(query, n)]
    if counts := [*fewer[:1], *more[:1]]:
        found.append(f"{' or '.join(map(str, counts))} GPUs")
    whole = train.micro_batch_size * gpus
    negatives = query.config.objective.contrastive_batch if isinstance(query.config, Config) else None
    others = [b for b in (batch // whole * whole, -(-batch // whole) * whole) if b]
    if fitting := [b for b in others if not negatives or b % negatives == 0]:
        found.append(f"train.global_batch_size={' or '.join(map(str, fitting))}")
    return "use " + ", or ".join(found)


def _fits(query: CostQuery, gpus: int) -> bool:
    try:
        layout_of(query.config.train, query.together, first_of(gpus))
    except ValueError:
        return False
    return True


def first_of(gpus: int) -> ProcessInfo:
    return ProcessInfo(0, gpus, 0, torch.device("cuda"))
