"""`tgm-scale finetune`: a classifier trained from a checkpoint by the trainer and tested on several views.

The recipe is VideoMAE's (Tong et al. 2022, appendix): layer decay, mixup and cutmix, RandAugment, random erasing, drop
path, repeated augmentation.

Shapes: B clips of a micro batch, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.checkpoints.checkpoint import Reader
from tgm_scale.checkpoints.ema import Average
from tgm_scale.checkpoints.folders import folder_of
from tgm_scale.contracts import Batch
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.build import make_update
from tgm_scale.evaluation import results
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning import classifier, multiview, setup
from tgm_scale.finetuning.augment import PairMixer
from tgm_scale.finetuning.head_norm import BatchStatistics, GlobalNorm, Inputs
from tgm_scale.models.classifier import HEAD_NORM
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training import data_digest
from tgm_scale.training.opening import run
from tgm_scale.training.task import PendingStep, StepResult, Steps, Task
from tgm_scale.training.trainer import Start


def finetune(config: FinetuneConfig) -> int:
    """Train, or resume the run in its folder; then test. Returns and raises the same as `opening.run`."""
    process = find_process()
    plan = setup.plan_finetuning(config, process)
    setup.check(config, plan)
    return run(config, plan, process, setup.storage_seconds(config), partial(Finetuning, config, plan))


class Finetuning(Task):
    """A classifier trained on labelled data, with an average of its weights if the run keeps one."""

    def __init__(self, config: FinetuneConfig, plan: RunPlan, start: Start):
        self.config, self.folder = config, start.folder
        self.parts = parts = setup.prepare(config, plan, start.collectives)
        self.plan, self.process = parts.plan, start.collectives.process
        settings, repeats = config.finetune, config.data.repeated_augmentation
        self.mixer = PairMixer(settings.mixup, settings.cutmix, settings.label_smoothing, len(parts.classes), repeats)
        self.to_device = ToDevice(self.process.device)
        self.average: Average | None = None
        self.statistics: BatchStatistics | None = None

    def build_module(self, newest: Path | None) -> nn.Module:
        module, self.positions, self.notes = classifier.initial_model(self.config, self.parts.classes, newest)
        return module

    def parameter_groups(self, module: nn.Module) -> list[dict[str, Any]]:
        return classifier.layer_groups(module, self.config.optim.weight_decay, self.config.finetune.layer_decay)

    def setup(self, engine: Any) -> None:
        self.engine = engine
        if decay := self.config.finetune.ema:
            self.average = Average(partial(engine_state.masters, engine), decay, self.folder)
        if self.config.finetune.head_norm == "batch":
            self.statistics = BatchStatistics(engine, self.process.device, self.config.finetune.ema)

    def load_extra_state(self, step: int) -> None:
        if self.average is not None:
            self.average.read(step)
        if self.statistics is not None:
            self.statistics.restore(Reader(folder_of(self.folder / "checkpoints", step)).manifest[HEAD_NORM])

    def loader(self, steps: range) -> ClipLoader:
        return setup.loader(self.config, self.parts, steps)

    def prepare_steps(self, steps: Steps) -> Iterator[PendingStep]:
        for step, batches in self.to_device.ahead(self._labelled(steps)):
            yield PendingStep(step, batches, partial(list, batches))

    def _labelled(self, steps: Steps) -> Steps:
        """Give unlabelled clips weight 0 before the copy to the device, so that they have weight 0 there, too."""
        for step, batches in steps:
            for batch in batches:
                self.parts.leave_out_unlabelled(batch)
            yield step, batches

    def step(self, micro: list[Batch], valid: float, limit: float) -> StepResult:
        device, accumulation = self.process.device, self.plan.layout.accumulation
        total = torch.zeros((), dtype=torch.float64, device=device)
        digest = data_digest.of_rank([self.to_device.numbers(torch.tensor(_digest(micro)))])
        # a single micro batch is prepared once; with several, keeping the mixed pixels would hold all of them in
        # memory
        once = [self._prepared(*micro)] if len(micro) == 1 else None
        norm = None if self.statistics is None else self.statistics.of_batch(once or map(self._prepared, micro), valid)
        for index, batch in enumerate(micro):
            inputs = once[0] if once else self._prepared(batch)
            scores_BC, surrogate = self._scores(inputs, norm)
            error_B = F.cross_entropy(scores_BC.float(), inputs.targets_BC, reduction="none")
            loss = torch.where(inputs.weight_B > 0, error_B, 0.0).sum() / max(valid, 1.0)
            total += loss.detach()
            if surrogate is not None:
                loss = loss + surrogate
            # a sum over the global batch, while the engine averages over ranks and micro steps
            self.engine.backward(loss * self.process.world_size * accumulation)
            if index < accumulation - 1:
                self.engine.step()  # counts the micro step, updates nothing
        metrics_2 = torch.stack([total, digest])
        if self.process.world_size > 1:
            dist.all_reduce(metrics_2)
        outcome = make_update(self.engine, metrics_2[1:], metrics_2[0], limit)
        if self.average is not None and outcome.refusal is None:
            self.average.update()
        if self.statistics is not None and outcome.refusal is None:
            self.statistics.accept()
        [digest_of_all] = outcome.metrics
        return StepResult(outcome.loss, outcome.grad_norm, outcome.refusal, digest_of_all)

    def _scores(self, inputs: Inputs, norm: GlobalNorm | None) -> tuple[Tensor, Tensor | None]:
        """Return scores, and a loss term for the gradient through the norm's statistics."""
        if norm is None:
            return self.engine(inputs.video, inputs.seeds_B), None
        scores_BC, features_BD = self.engine(inputs.video, inputs.seeds_B, norm.norm_2D)
        return scores_BC, norm.surrogate(features_BD, inputs.weight_B)

    def _prepared(self, batch: Batch) -> Inputs:
        labels_B = self.to_device.numbers(self.parts.numbers(batch))
        seeds, weights = batch.seeds.tolist(), batch.weight.tolist()
        batch = self.to_device(batch)
        video, targets_BC = self.mixer(batch.video, labels_B, seeds, weights)
        return Inputs(video, targets_BC, batch.seeds, batch.weight)

    def checkpoint_metadata(self) -> dict[str, Any]:
        found = classifier.classifier_metadata(self.config, self.plan.shape, self.parts.classes, self.positions)
        return found if self.statistics is None else found | {HEAD_NORM: self.statistics.state()}

    def write_extra_state(self, step: int, retained: list[int]) -> None:
        """Write the average of the weights."""
        if self.average is not None:
            self.average.write(step, retained)

    def data_metadata(self) -> list[dict[str, Any]]:
        return setup.data_metadata(self.parts)

    def print_start(self, start: int) -> None:
        told = results.interpolation_note(self.positions, self.config.data.frames, self.config.data.size)
        notes = [*self.notes, *(f"positions: {text}" for text in told.values())]
        setup.announce(self.config, self.parts, notes, start)

    def closing_message(self) -> str:
        return f"The run is in {self.folder}; it is tested now"

    def finish(self) -> None:
        """Test the newest checkpoint."""
        multiview.evaluate(self.config, self.folder, self.parts)


def _digest(batches: list[Batch]) -> int:
    """Return the sum of keys of this rank's clips, 40 bits of each."""
    return sum(
        seeding.key("digest", key, seed) >> 23
        for batch in batches
        for key, seed in zip(batch.keys, batch.seeds.tolist())
    )
