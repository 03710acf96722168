"""Plan of a run: what follows from a configuration on a number of processes, derived once, from which it is built."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch

from tgm_scale.assembly.objective import needs_captions, weights_of
from tgm_scale.assembly.tower_sizes import tower_sizes
from tgm_scale.config.sections import (
    Config,
    DeepSpeedConfig,
    MaskingConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TrainingConfig,
)
from tgm_scale.contracts import BatchLayout, Grid
from tgm_scale.engine.plan import EnginePlan, Schedule, resolve_precision
from tgm_scale.guidance.towers import tower_folder
from tgm_scale.masking.recipes import Masker, build_masker
from tgm_scale.models.generator import generator_macs
from tgm_scale.models.pretraining import macs_per_clip
from tgm_scale.models.sampler import sampler_macs
from tgm_scale.models.vit import SIZES, ModelSize
from tgm_scale.objectives.term import CAPTIONS, FEATURES, TARGETS
from tgm_scale.objectives.terms import needs_of
from tgm_scale.runtime.distributed import ProcessInfo


@dataclass(frozen=True)
class Shape:
    """Dimensions of the model and of the clips that it sees."""

    name: str  # name of the size
    size: ModelSize  # with the configuration's patch, tubelet, depths and decoder_attention
    frames: int
    image_size: int
    grid: Grid

    @classmethod
    def of(cls, model: ModelConfig, frames: int, image_size: int) -> Shape:
        """Return the shape of a configured model. Raises ValueError where the clip does not divide into tokens."""
        names = ("patch", "tubelet", "depth", "decoder_depth", "decoder_attention")
        changes = {name: value for name in names if (value := getattr(model, name)) is not None}
        size = dataclasses.replace(SIZES[model.size], **changes)
        return cls(model.size, size, frames, image_size, Grid.of(frames, image_size, size.tubelet, size.patch))

    def macs(self, visible: int, targets: int) -> float:
        """Return the multiply-accumulates of a clip's forward pass over so many tokens."""
        return macs_per_clip(self.size, self.frames, self.image_size, visible, targets)


def masker_of(masking: MaskingConfig, grid: Grid, decode_ratio: float = 1.0) -> Masker:
    """Build the masker. Raises ValueError that names the configuration's key."""
    return build_masker(
        masking.recipe,
        grid,
        mask_ratio=masking.mask_ratio,
        visible_ratio=masking.visible_ratio,
        decode_ratio=decode_ratio,
        **masking.options,
    )


def shape_of(config: TrainingConfig) -> Shape:
    return Shape.of(config.model, config.data.frames, config.data.size)


def run_masker(config: Config) -> Masker:
    return masker_of(config.masking, shape_of(config).grid, config.model.decode_ratio)


def recipe_masker(config: Config, recipe: str) -> Masker:
    """Build a recipe's masker at the configuration's ratio; the options apply only to the configuration's recipe."""
    masking = config.masking
    changes = {"recipe": recipe, "options": masking.options if recipe == masking.recipe else {}}
    return masker_of(masking.model_copy(update=changes), shape_of(config).grid, config.model.decode_ratio)


def layout_of(train: TrainConfig, group: int, process: ProcessInfo) -> BatchLayout:
    """Return the layout, with a micro batch no larger than a process's share of the global batch: `micro_batch_size`
    is what a GPU can hold, and with many GPUs each has a smaller share. Nothing but speed depends on it.

    group: clips that share a micro batch. Raises ValueError where the batch does not divide."""
    share, rest = divmod(train.global_batch_size, process.world_size)
    fits = not rest and share < train.micro_batch_size and not share % group
    micro = share if fits else train.micro_batch_size
    return BatchLayout(train.global_batch_size, micro, process.rank, process.world_size)


def engine_of(settings: DeepSpeedConfig, layout: BatchLayout, precision: str, optim: OptimConfig) -> EnginePlan:
    return EnginePlan(
        stage=settings.stage,
        config_file=settings.config,
        layout=layout,
        precision=precision,
        clip_norm=optim.clip_norm,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        optimizer=optim.name,
    )


@dataclass(frozen=True)
class RunPlan:
    """Plan of a training run on one of its processes."""

    shape: Shape
    layout: BatchLayout
    repeats: int  # clips of a sample
    engine: EnginePlan
    optim: OptimConfig
    device: torch.device
    masker: Masker | None = None  # None: the model sees all tokens, or `read` of them
    read: int | None = None
    terms: frozenset[str] = frozenset()  # what the terms of the objective need: objectives/term.py
    targets: int = 0  # tokens that are decoded
    captions: bool = False  # whether any are read
    without_captions: tuple[str, ...] = ()  # overrides that make a run read none
    heads: int = 0  # of the frozen tower, for a mask that is learned from their attention
    steps: int | None = None  # None: not known before the data is opened

    @property
    def stage(self) -> int:
        return self.engine.zero["stage"]

    @property
    def samples_per_step(self) -> int:
        return self.layout.global_batch // self.repeats

    @property
    def schedule(self) -> Schedule:
        assert self.steps is not None
        optim = self.optim
        return Schedule.of(optim.base_lr, optim.min_lr, optim.warmup_share, self.steps, self.layout.global_batch)

    @property
    def needs(self) -> set[str]:
        """Inputs computed for each clip for masker and terms, by the names of assembly/towers.py."""
        assert self.masker is not None
        return self.masker.needs | (self.terms & {FEATURES})

    @property
    def visible(self) -> int:
        """Tokens that the encoder sees."""
        return (self.read or self.shape.grid.tokens) if self.masker is None else self.masker.visible_count

    @property
    def macs_per_clip(self) -> float:
        """Multiply-accumulates of one clip's forward pass."""
        return self.encoder_macs + self.shape.macs(self.visible, self.targets) - self.shape.macs(self.visible, 0)

    @property
    def encoder_macs(self) -> float:
        """Multiply-accumulates of one clip at the encoder's width, including a learned mask's."""
        size, tokens, mask = self.shape.size, self.shape.grid.tokens, 0
        if self.learns_mask:
            mask = generator_macs(self.heads, tokens) if self.heads else sampler_macs(size, tokens)
        return self.shape.macs(self.visible, 0) + mask

    @property
    def learns_mask(self) -> bool:
        return self.masker is not None and self.masker.learned is not None

    def for_samples(self, train: TrainConfig, samples: int) -> RunPlan:
        """Return the plan with its steps over so many samples; an epoch is the steps that it takes to see each
        once."""
        steps = train.steps
        if steps is None:
            assert train.epochs is not None
            # in decimal, as it is written: 1.1 * 3000 / 100 is 33.00000000000001 in binary fractions
            steps = math.ceil(Fraction(str(train.epochs)) * samples / self.samples_per_step)
        return dataclasses.replace(self, steps=steps)

    def facts(self) -> dict[str, Any]:
        """Return the content of RUN/plan.json."""
        tokens = {} if self.masker is None else {"visible_tokens": self.visible}
        tokens |= {} if self.masker is None else {"target_tokens": self.masker.target_count}
        return {
            "steps": self.steps,
            "world_size": self.layout.world_size,
            "accumulation": self.layout.accumulation,
            "micro_batch_size": self.layout.micro_batch,
            "precision": self.engine.precision,
            "stage": self.stage,
            **tokens,
            "peak_learning_rate": self.schedule.peak,
        }

    def described(self) -> str:
        """Return one line on what the run will do."""
        layout = self.layout
        return (
            f"{self.steps} steps of {layout.global_batch} clips ({layout.world_size} processes x "
            f"{layout.accumulation} micro steps x {layout.micro_batch}), {self.engine.precision}, ZeRO {self.stage}, "
            f"peak learning rate {self.schedule.peak:.3g}"
        )


def plan_pretraining(config: Config, process: ProcessInfo) -> RunPlan:
    """Derive the plan of a pretraining run. Raises ValueError for settings that do not go together."""
    shape = shape_of(config)
    masker = masker_of(config.masking, shape.grid, config.model.decode_ratio)
    repeats = config.data.repeated_augmentation
    layout = layout_of(config.train, repeats, process)
    engine = engine_of(
        config.deepspeed, layout, resolve_precision(config.train.precision, process.device), config.optim
    )
    terms = needs_of(weights_of(config.objective, masker))
    return RunPlan(
        shape,
        layout,
        repeats,
        engine,
        config.optim,
        process.device,
        masker,
        terms=terms,
        targets=masker.target_count if TARGETS in terms else 0,
        captions=CAPTIONS in terms or "relevance" in masker.needs,
        without_captions=_without_captions(config, masker),
        heads=_heads(config, masker),
    )


def _heads(config: Config, masker: Masker) -> int:
    towers = config.guidance.towers
    if "heads" not in masker.needs or towers is None:
        return 0
    heads: int = tower_sizes(tower_folder(towers))[0]["num_attention_heads"]
    return heads


def _without_captions(config: Config, masker: Masker) -> tuple[str, ...]:
    keys = config.objective.without(needs_captions(config.objective))
    if "relevance" in masker.needs:
        keys += ["masking.recipe=tube", *(["masking.options={}"] if config.masking.options else [])]
    return tuple(keys)
