"""`tgm-scale pretrain`: masked video modelling and the contrast with captions, as a task of the trainer."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from tgm_scale.assembly.checks import check
from tgm_scale.assembly.corpora import (
    corpus_metadata,
    make_synthetic,
    open_of_run,
    refuse_one_clip,
    storage_seconds,
)
from tgm_scale.assembly.objective import needs_captions
from tgm_scale.assembly.parts import (
    checkpoint_metadata,
    clip_loader,
    initialise,
    joint_module,
    objective,
)
from tgm_scale.assembly.run_plan import RunPlan, plan_pretraining
from tgm_scale.assembly.towers import load_towers, online_maps
from tgm_scale.assembly.unused import unused_in_pretraining
from tgm_scale.config import Config, DataConfig, override
from tgm_scale.conversion.key_maps import MASKS
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.engine.plan import parameter_groups
from tgm_scale.evaluation import probe
from tgm_scale.evaluation.online import Neighbours
from tgm_scale.evaluation.session import PARTS, open_split
from tgm_scale.evaluation.settings import LabelledConfig
from tgm_scale.objectives.term import CAPTIONS
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training import introduction, prefetch, term_state
from tgm_scale.training.clip_guidance import ClipGuidance, GuidedBatch
from tgm_scale.training.opening import run
from tgm_scale.training.pictures import Pictures
from tgm_scale.training.step import JointStep, PreparedBatch
from tgm_scale.training.task import PendingStep, StepResult, Steps, Task
from tgm_scale.training.trainer import Start


def pretrain(config: Config) -> int:
    """Start a run, or resume the one in its folder. Returns and raises as `opening.run` does."""
    process = find_process()
    plan = plan_pretraining(config, process)
    check(config, plan)
    return run(config, plan, process, storage_seconds(config.data), partial(Pretraining, config, plan))


class Pretraining(Task):
    """The pretraining task: its data, frozen models and model, and its step."""

    def __init__(self, config: Config, plan: RunPlan, start: Start):
        self.config, self.folder, self.collectives = config, start.folder, start.collectives
        process = self.process = start.collectives.process
        opened = None
        if process.is_main:
            make_synthetic(config.data)
            # builds the indices of foreign shards, once
            opened = open_of_run(config, plan.captions, plan.without_captions)
        self.collectives.barrier()
        self.corpora = opened or open_of_run(config, plan.captions, plan.without_captions)
        self.coupled = CAPTIONS in plan.terms
        refuse_one_clip(self.corpora, config.objective)
        self.samples = sum(len(corpus) for corpus in self.corpora)
        self.plan = plan = plan.for_samples(config.train, self.samples)
        assert plan.masker is not None
        self.towers = load_towers(config.guidance, plan.needs, self.coupled, process.device)
        self.objective = objective(config, plan.shape, self.towers)
        self.guidance = ClipGuidance(plan.masker, self.towers, ToDevice(process.device))
        self.evaluate_every = config.knn.every
        self.visualise_every = config.log.pictures_every

    def build_module(self, newest: Path | None) -> nn.Module:
        config = self.config
        module = joint_module(config, self.plan.shape, self.towers, self.objective)
        if newest is None and (origin := config.train.init_from):
            notes = initialise(module, origin, self.plan.shape, config.data, config.model.initialisation)
            if self.process.is_main:
                print("\n".join([f"weights of {origin}", *notes]), flush=True)
        return module

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        """Return parameter groups; a learned mask's parameters may have a learning rate of their own."""
        assert self.plan.masker is not None
        return parameter_groups(module, self.plan.engine.weight_decay, (MASKS, self.plan.masker.recipe.rate))

    def setup(self, engine: Any) -> None:
        self.engine = engine
        self.joint_step = JointStep(engine, self.process, self.plan.layout, self.objective)
        self.neighbours = Neighbours(self.config, self.collectives) if self.evaluate_every else None
        seen = (self.config, self.plan, self.corpora, self.towers, self.collectives)
        self.pictures = Pictures(*seen) if self.visualise_every else None

    def load_extra_state(self, step: int) -> None:
        """Restore the state that the objective's terms keep between steps."""
        term_state.read(self.folder, self.objective, step)

    def write_extra_state(self, step: int, retained: list[int]) -> None:
        term_state.write(self.folder, self.objective, step, retained)

    def loader(self, steps: range) -> ClipLoader:
        config = self.config
        return clip_loader(self.plan, config.data, config.guidance, config.run.seed, self.corpora, steps)

    def prepare_steps(self, steps: Steps) -> Iterator[PendingStep]:
        """Yield the steps with the frozen models' outputs for their clips."""
        steps = self.guidance.to_device.ahead(steps)
        if self.config.guidance.own_stream:
            guided_batch = prefetch.prefetched(steps, self.guidance.compute, self.process.device)
        else:
            guided_batch = prefetch.without_prefetch(steps, self.guidance.compute)
        for step, batches, computations in guided_batch:
            yield PendingStep(step, batches, partial(self._prepared, step, computations))

    def _prepared(self, step: int, computations: list[Callable[[], GuidedBatch]]) -> list[PreparedBatch]:
        assert self.plan.steps is not None
        progress = (step + 1) / self.plan.steps
        return [self.guidance.prepare(compute(), progress) for compute in computations]

    def step(self, micro: list[PreparedBatch], valid: float, limit: float) -> StepResult:
        return self.joint_step(micro, valid, limit)

    def checkpoint_metadata(self) -> dict[str, Any]:
        return checkpoint_metadata(self.config, self.plan.shape)

    def data_metadata(self) -> list[dict[str, Any]]:
        return corpus_metadata(self.corpora)

    def print_start(self, start: int) -> None:
        assert self.plan.masker is not None
        relevance, cached = "relevance" in self.plan.masker.needs, self.config.guidance.cached
        introduction.introduce(self.folder, self.corpora, self.plan, scored_anew=relevance and not cached)
        for line in unused_in_pretraining(self.config, self.plan):
            print(line, flush=True)
        if self.coupled:
            settings = self.config.objective
            key = settings.key(needs_captions(settings)[0])
            assert self.towers.text is not None
            introduction.warn_of_one_caption(self.corpora, key, self.towers.text)
        if self.coupled or online_maps(self.config.guidance, self.plan.needs) or (relevance and cached):
            introduction.warn_of_small_towers(self.corpora, self.config.guidance.towers)
        introduction.warn_of_clips(self.corpora, self.config.data, self.plan.captions, self.towers.text)
        for line in introduction.other_synthetic(self.config.data, self.corpora[0]):
            print(line, flush=True)
        introduction.announce(self.folder, self.plan, self.objective.weights, self.samples, start)

    def closing_message(self) -> str:
        how = "knn" if probe.too_few(2, len(self.corpora[0])) else "probe"
        of_run = _words(("run.dir", f"{self.folder}-{how}"), ("encoder.checkpoint", self.folder))
        labelled = _labelled_data(self.config.data, self.corpora[0])
        if self.config.data.sampling != "dense":
            of_run += f" data.sampling={self.config.data.sampling}"
        return f"The run is in {self.folder}; its features are judged by: tgm-scale {how} {of_run} {labelled}"

    def guidance_seconds(self) -> float:
        return self.guidance.clock.seconds()

    def metrics(self) -> dict[str, float]:
        """Return the guidance metrics; warn, once per start, where the guidance has no influence."""
        found = self.guidance.metrics()
        self.guidance.warn_once()
        return found

    def evaluate(self) -> dict[str, float]:
        """Return the accuracy of nearest neighbours on a small labelled set."""
        assert self.neighbours is not None
        return self.neighbours(self.engine.module.model)

    def visualise(self) -> Image.Image:
        """Draw masks and reconstructions of a fixed few clips."""
        assert self.pictures is not None
        return self.pictures(self.engine.module)


def _labelled_data(data: DataConfig, corpus: Corpus) -> str:
    """Return the overrides by which an evaluation reads labelled clips: the run's own data, where its folder has
    labels and splits, else placeholders."""
    listing = getattr(corpus, "listing", None)
    if listing is not None and listing.of_folder and listing.chosen and any(one.label for one in listing.entries):
        place = data.corpora()[0].path
        own = LabelledConfig(train=place, test=place, root=data.root, group=data.group, test_groups=data.test_groups)
        with suppress(ValueError):  # for example where no test clip has a label
            for role in PARTS:
                open_split(own, role)
            group = None if data.group == "group" else data.group
            given = {"data.train": place, "data.test": place, "data.root": data.root, "data.group": group}
            words = _words(*((key, value) for key, value in given.items() if value is not None))
            groups = f" {shlex.quote(f'data.test_groups={json.dumps(data.test_groups)}')}"
            return words + groups * (data.test_groups is not None)
    lists = "lists with the columns file and label" + ", of videos below FOLDER" * (data.root is None)
    return (
        f"data.train=YOUR_TRAIN.csv data.test=YOUR_TEST.csv {_words(('data.root', data.root or 'FOLDER'))} ({lists})"
    )


def _words(*given: tuple[str, str | Path]) -> str:
    """Return overrides quoted for a shell, which YAML reads as these texts."""
    return shlex.join(override(key, value) for key, value in given)
