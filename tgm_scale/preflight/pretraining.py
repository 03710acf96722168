"""A preflight of a pretraining run: a clip, its caption, its mask, the model.

The first clips of the run's own order are read as the loader reads them; the frozen towers and the masker get them as
in training; one forward and backward pass is made where it is quick or there is a GPU. Nothing is kept.

Shapes: B clips, E width of the embedding.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.config import Config
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus
from tgm_scale.engine.plan import not_used
from tgm_scale.objectives.term import CAPTIONS, TARGETS
from tgm_scale.planning.checks import check
from tgm_scale.planning.corpora import open_corpora
from tgm_scale.planning.parts import clip_loader, joint_module, objective
from tgm_scale.planning.run_plan import RunPlan, plan_pretraining
from tgm_scale.planning.towers import load_towers
from tgm_scale.preflight.task_checks import CLIPS, TaskChecks, first_usable, try_step
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.clip_guidance import ClipGuidance


class PretrainingChecks(TaskChecks):
    def __init__(self, config: Config):
        self.config: Config = config

    def plan(self, process: ProcessInfo) -> RunPlan:
        return plan_pretraining(self.config, process)

    def check(self, process: ProcessInfo) -> None:
        check(self.config, self.plan(process))

    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        if self._is_made_later():
            return {}
        plan = self.plan(process)
        opened = open_corpora(self.config.data, plan.captions, plan.without_captions)
        return {corpus.name: corpus for corpus in opened}

    def _is_made_later(self) -> bool:
        data = self.config.data
        return data.synthetic is not None and not Path(data.corpora()[0].path).exists()

    @contextmanager
    def _few_clips(self, process: ProcessInfo) -> Iterator[Config]:
        """The configuration with the smallest batch, decoded here; a corpus that a start makes has two clips."""
        config, repeats = self.config, self.config.data.repeated_augmentation
        train = {"micro_batch_size": repeats, "global_batch_size": repeats * process.world_size}
        data: dict[str, object] = {"workers": 0}
        with tempfile.TemporaryDirectory() as folder:
            synthetic = config.data.synthetic
            if synthetic is not None and self._is_made_later():
                make_corpus(Path(folder) / "corpus", 2, SyntheticSpec(seed=synthetic.seed, mode=synthetic.mode))
                data |= {"shards": str(Path(folder) / "corpus"), "synthetic": None}
            yield config.model_copy(
                update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
            )

    def _try(self, process: ProcessInfo) -> list[str]:
        with self._few_clips(process) as few:
            plan = plan_pretraining(few, process)
            batch = _first_usable(few, plan)
        config = self.config
        assert plan.masker is not None
        towers = load_towers(few.guidance, plan.needs, CAPTIONS in plan.terms, process.device)
        with torch.no_grad():
            prepared = ClipGuidance(plan.masker, towers, ToDevice(process.device))(batch)
        lines = [f"a clip, {batch.keys[0]}: {'x'.join(map(str, batch.video.shape[2:]))} pixels"]
        if prepared.text_BE is not None:
            lines.append(f"its caption {batch.captions[0]!r:.60}: an embedding of {prepared.text_BE.shape[-1]}")
        mask = prepared.mask
        lines.append(f"its mask: {mask.visible.shape[1]} tokens seen, {mask.target.shape[1]} painted")
        module = joint_module(config, plan.shape, towers, objective(config, plan.shape, towers))

        def loss_of(index_B: Tensor) -> Tensor:
            target = mask.target[index_B] if TARGETS in plan.terms else None
            features = None if prepared.features_BNF is None else prepared.features_BNF[index_B]
            passed = module(prepared.batch.video[index_B], mask.visible[index_B], target, features)
            loss = sum(part.float().mean() for part in passed[:2] if part is not None)
            assert isinstance(loss, Tensor)
            return loss

        tried = try_step(config, self.plan(process), module, loss_of, len(prepared.batch))
        return [*lines, tried, *not_used(config.deepspeed.config)]


def _first_usable(few: Config, plan: RunPlan) -> Batch:
    opened = open_corpora(few.data, plan.captions, plan.without_captions)
    steps = clip_loader(plan, few.data, few.guidance, few.run.seed, opened, range(CLIPS))
    return first_usable(steps, "data.shards", plan.layout.rank)
