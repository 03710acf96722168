"""A preflight of a finetuning run: labelled clips, the weights that it starts from, the classifier.

The first clips of the run's own order are read and augmented as the loader does it, mixed, and go through one forward
and backward pass where it is quick or there is a GPU. Nothing is kept; the test split is opened, and not tested on.

Shapes: B clips, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from tgm_scale.checkpoints import checkpoint
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.inventory import refuse_above
from tgm_scale.engine.plan import not_used
from tgm_scale.evaluation.session import open_split
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning import classifier, setup
from tgm_scale.finetuning.augment import PairMixer
from tgm_scale.planning.run_plan import RunPlan
from tgm_scale.preflight.task_checks import CLIPS, TaskChecks, first_usable, try_step
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo


class FinetuningChecks(TaskChecks):
    def __init__(self, config: FinetuneConfig):
        self.config: FinetuneConfig = config

    def plan(self, process: ProcessInfo) -> RunPlan:
        return setup.plan_finetuning(self.config, process)

    def check(self, process: ProcessInfo) -> None:
        setup.check(self.config, self.plan(process))

    def corpora(self, process: ProcessInfo) -> dict[str, Corpus]:
        data = self.config.data
        return {"of data.train": open_split(data, "train").corpus, "of data.test": open_split(data, "test").corpus}

    def _try(self, process: ProcessInfo) -> list[str]:
        few = self._few_clips(process)
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
            scores_BC = module(video[index_B], batch.seeds.to(index_B.device)[index_B])
            return F.cross_entropy(scores_BC.float(), targets_BC[index_B])

        tried = try_step(self.config, self.plan(process), module, loss_of, len(batch))
        return [*lines, tried, *not_used(self.config.deepspeed.config)]

    def _few_clips(self, process: ProcessInfo) -> FinetuneConfig:
        """The configuration with the smallest batch, decoded here."""
        config = self.config
        together = config.clips_together
        train = {"micro_batch_size": together, "global_batch_size": together * process.world_size}
        data = config.data.model_copy(update={"workers": 0})
        return config.model_copy(update={"data": data, "train": config.train.model_copy(update=train)})


def _labelled(config: FinetuneConfig, parts: setup.Parts) -> Iterator[tuple[int, list[Batch]]]:
    for step, batches in setup.loader(config, parts, range(CLIPS)):
        for batch in batches:
            parts.leave_out_unlabelled(batch)
        yield step, batches
