"""The largest model and micro batch that a machine holds, the training time, and the overrides that start it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tgm_scale.assembly.objective import decodes
from tgm_scale.config import Config, apply_overrides, from_tree
from tgm_scale.models.vit import SIZES
from tgm_scale.planning.cost import Cost, CostQuery, device_bytes, first_of
from tgm_scale.planning.footprint import footprint
from tgm_scale.planning.machine import Machine
from tgm_scale.planning.memory_strategies import MemoryStrategy, candidate_strategies, largest_that_fits
from tgm_scale.planning.step_time import step_time

_ENOUGH = 8  # clips of a pass: below it the next memory strategy is tried, since small products leave a GPU idle
_SIZES = [name for name in reversed(SIZES) if name != "tiny"]  # the largest first
# overrides that save time by learning from less of a clip, if a configuration does not do so already
HALF_DECODED, THINNED = "model.decode_ratio=0.5", "masking.visible_ratio=0.1"


@dataclass(frozen=True)
class Wanted:
    """Input of the search. config: with the user's overrides; their size and batch are where the search begins."""

    config: Config
    machine: Machine
    clips: int | None = None
    size: str | None = None  # None: any


@dataclass(frozen=True)
class Choice:
    """A model that fits, with its memory strategy, cost and overrides."""

    size: str
    strategy: MemoryStrategy
    query: CostQuery
    cost: Cost
    overrides: list[str]
    machine: Machine

    @property
    def micro(self) -> int:
        return self.query.config.train.micro_batch_size

    @property
    def device(self) -> float:
        """Bytes on one GPU."""
        return device_bytes(self.cost, self.strategy.checkpointing)

    @property
    def host(self) -> float:
        """Bytes of a node's memory that offload takes."""
        return self.machine.gpus_per_node * footprint(self.cost.run, self.strategy.checkpointing).host

    @property
    def hours(self) -> float | None:
        """Hours of training, with towers and network, without waits for data and the copies of offload."""
        time, steps = step_time(self.cost, self.machine), self.query.config.train.steps
        return None if time is None or steps is None else steps * time.total / 3600


def choices(wanted: Wanted, savings: tuple[str, ...] = ()) -> list[Choice]:
    """Return the best way to hold each size that fits, largest first. Raises ValueError if none suits the clips."""
    sizes = [wanted.size] if wanted.size else _SIZES
    found, mistakes = [], []
    for size in sizes:
        try:
            found.append(choose(wanted, size, savings))
        except ValueError as error:  # such as clips that do not divide into the patches of g, but into those of B
            mistakes.append(error)
    if len(mistakes) == len(sizes):
        raise mistakes[-1]
    return [choice for choice in found if choice is not None]


def largest(found: list[Choice]) -> Choice:
    """Return the largest model that needs no offload, else the largest. Raises ValueError where there is none."""
    if not found:
        raise ValueError(
            "--fit: no model fits, even offloaded with checkpointing and the smallest micro batch: give a card of "
            "more memory, fewer data.frames, a smaller train.global_batch_size, or masking.visible_ratio=0.1 "
            "model.decode_ratio=0.5"
        )
    return next((choice for choice in found if choice.strategy.offload == "none"), found[0])


def choose(wanted: Wanted, size: str, savings: tuple[str, ...] = ()) -> Choice | None:
    """Return the fastest way to hold this size with enough clips in a pass; None where none fits. Raises ValueError
    where the clips do not divide into its patches."""
    common = [f"model.size={size}", *savings, *_batch(wanted)]
    config = _checked(wanted, common)
    query = CostQuery.pretraining(config)
    found = []
    for strategy in candidate_strategies(config, wanted.machine.gpus):
        assert wanted.machine.memory is not None
        best = largest_that_fits(strategy.of(query), wanted.machine.gpus, wanted.machine.memory)
        if best is None:
            continue
        micro = best[0].config.train.micro_batch_size
        given = [*_without_micro(common), *strategy.overrides, f"train.micro_batch_size={micro}"]
        found.append(Choice(size, strategy, *best, given, wanted.machine))
        if micro >= min(_ENOUGH, config.train.global_batch_size // wanted.machine.gpus):
            break
    return max(found, key=lambda one: (one.strategy.offload == "none", one.micro), default=None)


def savings_of(wanted: Wanted, size: str) -> list[tuple[str, ...]]:
    """Return overrides that save time but change what is learned, and that the configuration does not have yet: each
    alone, then all together."""
    config = _checked(wanted, [f"model.size={size}", *_batch(wanted)])
    masks = CostQuery.pretraining(config).plan(config, first_of(1)).masker
    assert masks is not None
    single = [HALF_DECODED] if config.model.decode_ratio > 0.5 and decodes(config.objective) else []
    single += [THINNED] if masks.visible_count > 0.15 * masks.grid.tokens else []
    found = [(one,) for one in single] + ([tuple(single)] if len(single) > 1 else [])
    return [one for one in found if _saves(wanted, size, one)]


def _saves(wanted: Wanted, size: str, savings: tuple[str, ...]) -> bool:
    try:
        return choose(wanted, size, savings) is not None
    except ValueError:  # they do not go with the configuration's masks
        return False


def _without_micro(overrides: list[str]) -> list[str]:
    return [one for one in overrides if not one.startswith("train.micro_batch_size=")]


def _checked(wanted: Wanted, overrides: list[str]) -> Config:
    return from_tree(apply_overrides(wanted.config.model_dump(mode="json"), overrides), "--fit")


def _batch(wanted: Wanted) -> list[str]:
    """Return overrides of steps and batch: the nearest one that divides over the GPUs, below the configuration's."""
    config, gpus = wanted.config, wanted.machine.gpus
    given, repeats = config.train.global_batch_size, config.data.repeated_augmentation
    unit = math.lcm(gpus * repeats, config.objective.contrastive_batch or 1)
    batch = max(unit, given // unit * unit)
    overrides = [f"train.global_batch_size={batch}"] if batch != given else []
    overrides.append(f"train.micro_batch_size={repeats}")  # for now: it divides any batch
    if wanted.clips is not None:
        overrides += [f"train.steps={math.ceil(wanted.clips / batch)}", "train.epochs=null"]
    return overrides
