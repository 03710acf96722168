"""Preflight checks of a configuration: of any task, of a pretraining run, of a finetuning run.

The first clips of the run's own order are read as by its loader, pass through what precedes the run's model (the
frozen towers and the masker; augmentation and mixing), and through one forward and backward pass if that is quick or
there is a GPU. Nothing is kept; a test split is opened but not evaluated.

Shapes: B clips, C classes, E width of the embedding.
"""

from __future__ import annotations

import tempfile
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.assembly.checks import check
from tgm_scale.assembly.corpora import open_of_run
from tgm_scale.assembly.joint_module import MaskSampling
from tgm_scale.assembly.parts import clip_loader, joint_module, objective
from tgm_scale.assembly.run_plan import RunPlan, plan_pretraining
from tgm_scale.assembly.towers import load_towers
from tgm_scale.assembly.unused import unused_in_finetuning, unused_in_pretraining
from tgm_scale.checkpoints import checkpoint
from tgm_scale.config import Config
from tgm_scale.config.sections import TrainingConfig
from tgm_scale.contracts import Batch, Problem
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import refuse_above
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.engine.plan import not_used
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning import classifier, setup
from tgm_scale.finetuning.augment import PairMixer
from tgm_scale.models.classifier import HeadNorm
from tgm_scale.objectives.term import CAPTIONS, TARGETS
from tgm_scale.planning.footprint import footprint
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.clip_guidance import ClipGuidance

CLIPS = 8  # tried until one is usable: training leaves out broken ones, too
AnyConfig = TypeVar("AnyConfig", Config, FinetuneConfig)
_QUICK_FLOP = 1e11  # of a step on a CPU: a few seconds
_SPARE = 0.9  # share of a GPU's free memory that a step may be expected to use


class TaskChecks(ABC):
    """Checks of one configuration. Methods raise ValueError, OSError or RuntimeError for what a run would meet."""

    config: TrainingConfig

    @abstractmethod
    def plan(self, process: ProcessInfo) -> RunPlan:
        """Return the run's plan."""

    @abstractmethod
    def check(self, process: ProcessInfo) -> None:
        """Check what needs neither processes nor data."""

    @abstractmethod
    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        """Return the corpora that the run reads, by name; empty if they are created at the start. May build
        indices."""

    @abstractmethod
    def _try(self, process: ProcessInfo) -> list[str]:
        """Try what the run will use in one process. Returns a line for each thing tried or left out."""

    def try_run(self, process: ProcessInfo) -> list[str]:
        """Call `_try`; errors of other packages become RuntimeError."""
        try:
            return self._try(process)
        except (ValueError, OSError, RuntimeError):
            raise
        except Exception as error:  # another package's, whose version differs
            raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _smallest(config: AnyConfig, together: int, process: ProcessInfo, **data: str | None) -> AnyConfig:
    train = {"micro_batch_size": together, "global_batch_size": together * process.world_size}
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"workers": 0, **data}),
            "train": config.train.model_copy(update=train),
        }
    )


def first_usable(steps: Iterable[tuple[int, list[Batch]]], key: str, rank: int) -> Batch:
    """Return the first micro batch with a usable clip. key: of the configuration, for the message."""
    problems: list[Problem] = []
    for _, [batch] in steps:
        if bool((batch.weight > 0).any()):
            return batch
        problems += batch.problems
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(p.reason for p in problems).items())
    raise ValueError(
        f"{key}: none of the first {CLIPS} clips of rank {rank} can be used ({counts}); the last "
        f"is {problems[-1].key}: {problems[-1].detail}"
    )


def try_step(
    config: TrainingConfig, plan: RunPlan, module: nn.Module, loss_of: Callable[[Tensor], Tensor], given: int
) -> str:
    """Run a forward and a backward pass in the run's precision: a whole micro batch on a GPU, else the given clips.

    loss_of: returns the loss of clips given their numbers among those given, int64 on the device."""
    device, precision = plan.device, plan.engine.precision
    on_gpu = device.type == "cuda"
    clips = plan.layout.micro_batch if on_gpu else given
    needed = footprint(plan, config.model.activation_checkpointing)
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(device)
        if needed.device > _SPARE * free:
            return f"no step of the model: {needed.device / 1e9:.0f} GB expected, {free / 1e9:.0f} GB free"
    elif 6 * plan.macs_per_clip * clips > _QUICK_FLOP:
        return "no step of the model: it would take long on a CPU"
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    began = time.perf_counter()
    module.to(device, dtype)
    try:
        loss = loss_of(torch.arange(clips, device=device) % given)
        loss.backward()
        finite = bool(torch.isfinite(loss))
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"a step of {clips} clips does not fit the GPU's memory: lower train.micro_batch_size, or set "
            f"model.activation_checkpointing=true ({str(error).splitlines()[0]})"
        ) from None
    if not finite:
        raise ValueError(f"a step of the model gave a loss of {loss.item()}")
    return f"a step of the model, {clips} clips in {precision}: {time.perf_counter() - began:.1f} s"


@dataclass
class PretrainingChecks(TaskChecks):
    config: Config

    def plan(self, process: ProcessInfo) -> RunPlan:
        return plan_pretraining(self.config, process)

    def check(self, process: ProcessInfo) -> None:
        check(self.config, self.plan(process))

    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        if self._is_made_later():
            return {}
        plan = self.plan(process)
        opened = open_of_run(self.config, plan.captions, plan.without_captions)
        return {corpus.name: corpus for corpus in opened}

    def _is_made_later(self) -> bool:
        data = self.config.data
        return data.synthetic is not None and not Path(data.corpora()[0].path).exists()

    @contextmanager
    def _few_clips(self, process: ProcessInfo) -> Iterator[Config]:
        """Yield the configuration with the smallest batch, decoded in this process.

        A corpus that the start creates is replaced by one of two clips."""
        config = self.config
        data: dict[str, str | None] = {}
        with tempfile.TemporaryDirectory() as folder:
            synthetic = config.data.synthetic
            if synthetic is not None and self._is_made_later():
                make_corpus(Path(folder) / "corpus", 2, SyntheticSpec(seed=synthetic.seed, mode=synthetic.mode))
                data = {"shards": str(Path(folder) / "corpus"), "synthetic": None}
            yield _smallest(config, config.data.repeated_augmentation, process, **data)

    def _try(self, process: ProcessInfo) -> list[str]:
        with self._few_clips(process) as few:
            plan = plan_pretraining(few, process)
            opened = open_of_run(few, plan.captions, plan.without_captions)
            steps = clip_loader(plan, few.data, few.guidance, few.run.seed, opened, range(CLIPS))
            batch = first_usable(steps, "data.shards", plan.layout.rank)
        config = self.config
        assert plan.masker is not None
        towers = load_towers(few.guidance, plan.needs, CAPTIONS in plan.terms, process.device)
        with torch.no_grad():
            prepared = ClipGuidance(plan.masker, towers, ToDevice(process.device))(batch)
        lines = [f"a clip, {batch.keys[0]}: {'x'.join(map(str, batch.video.shape[2:]))} pixels"]
        if prepared.text_BE is not None:
            lines.append(f"its caption {batch.captions[0]!r:.60}: an embedding of {prepared.text_BE.shape[-1]}")
        module = joint_module(config, plan.shape, towers, objective(config, plan.shape, towers)).to(process.device)
        mask = prepared.mask or module.draw(prepared.batch.video, prepared.sampling)
        lines.append(f"its mask: {mask.visible.shape[1]} tokens seen, {mask.target.shape[1]} painted")

        def loss_of(index_B: Tensor) -> Tensor:
            target = mask.target[index_B] if TARGETS in plan.terms else None
            features = None if prepared.features_BNF is None else prepared.features_BNF[index_B]
            seeds_B, heads_BASRC = prepared.sampling
            sampling = MaskSampling(seeds_B[index_B], None if heads_BASRC is None else heads_BASRC[index_B])
            passed = module(prepared.batch.video[index_B], mask.visible[index_B], target, features, sampling=sampling)
            loss = sum(part.float().mean() for part in passed[:2] if part is not None)
            assert isinstance(loss, Tensor)
            return loss

        tried = try_step(config, self.plan(process), module, loss_of, len(prepared.batch))
        return [*lines, tried, *unused_in_pretraining(config, plan), *not_used(config.deepspeed.config)]


@dataclass
class FinetuningChecks(TaskChecks):
    config: FinetuneConfig

    def plan(self, process: ProcessInfo) -> RunPlan:
        return setup.plan_finetuning(self.config, process)

    def check(self, process: ProcessInfo) -> None:
        setup.check(self.config, self.plan(process))

    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        data = self.config.data
        train = open_split(data, "train", self.config.run.seed)
        return {"of data.train": train.corpus, "of data.test": open_split(data, "test").corpus}

    def _try(self, process: ProcessInfo) -> list[str]:
        few = _smallest(self.config, self.config.clips_together, process)
        plan = setup.plan_finetuning(few, process)
        parts, found, _ = setup.open_data(few, plan, HostCollectives(ProcessInfo(0, 1, 0, process.device)))
        refuse_above(found, few.data.max_left_out_share)
        batch = first_usable(_labelled(few, parts), "data.train", plan.layout.rank)
        newest = checkpoint.newest_whole(Path(few.run.dir) / "checkpoints", {})
        module, _, notes = classifier.initial_model(
            self.config, parts.classes, None if newest is None else newest.folder
        )
        key = next(key for key, weight in zip(batch.keys, batch.weight.tolist()) if weight > 0)
        lines = [
            f"a clip, {key}: {'x'.join(map(str, batch.video.shape[2:]))} pixels",
            f"its label {parts.train.labels[key]!r:.60}: one of {len(parts.classes)} classes",
            *notes,
        ]
        settings, repeats = few.finetune, few.data.repeated_augmentation
        mixer = PairMixer(settings.mixup, settings.cutmix, settings.label_smoothing, len(parts.classes), repeats)
        to_device = ToDevice(process.device)
        labels_B, seeds, weights = parts.numbers(batch), batch.seeds.tolist(), batch.weight.tolist()
        batch = to_device(batch)
        video, targets_BC = mixer(batch.video, to_device.numbers(labels_B), seeds, weights)

        def loss_of(index_B: Tensor) -> Tensor:
            clips, seeds_B = video[index_B], batch.seeds.to(index_B.device)[index_B]
            if settings.head_norm == "none":
                scores_BC = module(clips, seeds_B)
            else:
                norm = HeadNorm.begin(module.size.width, index_B.device)
                with torch.no_grad():
                    features_BD = module(clips, seeds_B, norm.identity())[1].double()
                averages_2D = torch.stack([features_BD.mean(0), features_BD.square().mean(0)])
                scores_BC, _ = module(clips, seeds_B, HeadNorm(averages_2D, 1.0).mean_and_scale())
            return F.cross_entropy(scores_BC.float(), targets_BC[index_B])

        tried = try_step(self.config, self.plan(process), module, loss_of, len(batch))
        unused = unused_in_finetuning(self.config.data, self.config.model)
        return [*lines, tried, *unused, *not_used(self.config.deepspeed.config)]


def _labelled(config: FinetuneConfig, parts: setup.Parts) -> Iterator[tuple[int, list[Batch]]]:
    for step, batches in setup.loader(config, parts, range(CLIPS)):
        for batch in batches:
            parts.leave_out_unlabelled(batch)
        yield step, batches
