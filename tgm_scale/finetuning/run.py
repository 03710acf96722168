"""`tgm-scale finetune`: a classifier trained under the engine of the pretraining, then tested on several views.

What is shared with pretraining is its own: engine, learning rate, order of the data, checkpoints, metrics, preemption.
The recipe is VideoMAE's (Tong et al. 2022, appendix): layer decay, mixup and cutmix, RandAugment, random erasing, drop
path, repeated augmentation.

Shapes: B clips of a micro batch, C classes.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tgm_scale.checkpoints import checkpoint
from tgm_scale.checkpoints.ema import Average
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.contracts import Batch, Problem
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.update import make_update
from tgm_scale.evaluation import results
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.finetuning import multiview, setup
from tgm_scale.finetuning.augment import PairMixer
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.planning import disk
from tgm_scale.runs import run_folder
from tgm_scale.runs.faults import Diverged, Judge
from tgm_scale.runs.metrics import Metrics, ProgressLine, recent_losses_for_all
from tgm_scale.runs.resume import Resume
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import Control, Place, find_place
from tgm_scale.training.deaths import end, until_death
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE, StopRequest
from tgm_scale.training.reporting import Times, count_problems, row
from tgm_scale.training.step import StepResult
from tgm_scale.training.throughput import Throughput
from tgm_scale.training.watchdog import Watchdog


def finetune(config: FinetuneConfig) -> int:
    """Train, or go on with the run in its folder; then test. Returns the exit code, as `pretrain` does.

    Raises ValueError for a user's mistake, RunStopped or OSError where the run cannot go on."""
    place = find_place()
    plan = setup.plan_finetuning(config, place)
    setup.check(config, plan)
    folder = run_folder.claim(config)
    disk.check_room(folder, config.checkpoint, config.train.steps, plan.shape.size, decoder=False)
    stop = StopRequest(config.train.max_minutes)
    engine.start_processes(place, config.faults.start_seconds)
    control = Control(place)
    with run_folder.owned(folder, control):
        watchdog = Watchdog(folder, place, config.faults.hang_seconds, stop.ask, setup.storage_seconds(config))
        try:
            parts = setup.prepare(config, plan, control)
            code = _Run(config, folder, parts, stop, watchdog).train()
            # before the test, which has no step that all ranks meet at
            watchdog.end(f"stopped by {stop.reason}" if code else "done")
            if code == 0:
                multiview.judge(config, folder, parts)
            engine.stop_processes()
        except Exception:
            watchdog.end("failed")
            raise
    return code


class _Run:
    """The parts of a training and its loop."""

    def __init__(
        self, config: FinetuneConfig, folder: Path, parts: setup.Parts, stop: StopRequest, watchdog: Watchdog
    ):
        self.config, self.folder, self.parts, self.stop, self.watchdog = config, folder, parts, stop, watchdog
        self.place: Place = parts.control.place
        self.control: Control = parts.control
        self.checkpoints = folder / "checkpoints"
        settings, plan = config.finetune, parts.plan
        assert plan.steps is not None
        self.steps, self.schedule = plan.steps, plan.schedule
        resume = Resume(folder, self.control)
        new = resume.newest is None
        module, self.positions, notes = setup.start(config, parts.classes, resume.newest)
        if config.model.compile:
            compile_blocks(module)
        groups = setup.layer_groups(module, config.optim.weight_decay, settings.layer_decay)
        self.accumulation = plan.layout.accumulation
        self.engine = engine.build_engine(module, plan.engine, self.place.device, groups)
        retention = checkpoint.Retention(config.checkpoint.keep, config.checkpoint.keep_every)
        self.saver = Saver(self.checkpoints, retention, self.place, self.control)
        self.progress = resume.restore(self.engine)
        self.throughput = Throughput(plan.macs_per_clip, self.place.device)
        repeats = config.data.repeated_augmentation
        self.mixer = PairMixer(settings.mixup, settings.cutmix, settings.label_smoothing, len(parts.classes), repeats)
        self.to_device = ToDevice(self.place.device)
        self.average: Average | None = None
        if settings.ema:
            self.average = Average(partial(engine_state.masters, self.engine), settings.ema, folder)
        if self.average is not None and not new:
            self.average.read(self.progress.step)
        if self.place.is_main:
            run_folder.describe(folder, config, setup.data_facts(parts), plan.facts(), self.progress.step)
            told = results.told_positions(self.positions, config.data.frames, config.data.size)
            notes += [f"positions: {text}" for text in told.values()]
            setup.announce(config, parts, notes, self.progress.step)

    def train(self) -> int:
        """Make the steps that are left. Returns the exit code."""
        config, parts, watchdog, start = self.config, self.parts, self.watchdog, self.progress.step
        losses = self.progress.losses or recent_losses_for_all(self.folder, start, self.control)
        judge = Judge(config.faults.spike_factor, losses)
        metrics = Metrics(self.folder, start, config.log.tensorboard) if self.place.is_main else None
        line = ProgressLine(self.steps, config.log.every)
        self.engine.train()
        began = time.perf_counter()
        watchdog.at(start, "data")
        loader = setup.loader(config, parts, range(start, self.steps))
        for (step, batches), death in until_death(loader, (start, [])):
            loaded = time.perf_counter()
            watchdog.at(step, "meeting")
            for batch in batches:
                parts.leave_out_unlabelled(batch)
                batch.weight = self.mixer.weights(batch.weight)
            problems = [problem for batch in batches for problem in batch.problems]
            micro = [self._prepared(batch) for batch in batches]
            valid = sum(float(batch.weight.sum()) for batch in batches)
            own = [valid, len(problems), self.stop.asked(), _digest(batches), self.saver.written()]
            valid, broken, stopping, digest, written, died = self.control.sum([*own, death is not None])
            if died:
                end(death, lambda: bool(self.progress.step > start and self._save(metrics, True)))
            if written == self.place.world_size:
                self.saver.finish()
            watchdog.at(step, "update")
            learning_rate = self.schedule(step + 1)
            engine.set_learning_rate(self.engine, learning_rate)
            result = self._step(micro, max(valid, 1.0), judge.limit(), digest)
            judge.note(result.loss, result.refusal is not None)
            self.progress.step = step + 1
            self.progress.updates += result.updated
            self.progress.losses = list(judge.recent)
            if broken or self.progress.step == self.steps:
                self._count(problems, metrics)
            ended = time.perf_counter()
            if metrics is not None:
                times = Times(ended - began, loaded - began, 0.0)
                clips, repeats = config.train.global_batch_size, config.data.repeated_augmentation
                values = row(
                    step + 1, result, times, clips, repeats, learning_rate, self.progress.skipped,
                    self.throughput, self.place.world_size,
                )  # fmt: skip
                metrics.write(values)
                line.show(values)
            began = ended
            if judge.refused_in_a_row >= config.faults.refused_before_rollback:
                raise Diverged(
                    f"{judge.refused_in_a_row} updates in a row were refused ({result.refusal}): lower optim.base_lr"
                )
            if self._save(metrics, bool(stopping)):
                break
            watchdog.at(step + 1, "data")
        if metrics is not None:
            metrics.close()
        return REQUEUE_EXIT_CODE if self.progress.step < self.steps else 0

    def _save(self, metrics: Metrics | None, stopping: bool) -> bool:
        """Write a checkpoint where one is due. Returns whether it is the last of this start."""
        step = self.progress.step
        last = stopping or step == self.steps
        if last or step % self.config.checkpoint.every == 0:
            self.watchdog.at(step, "checkpoint")
            if metrics is not None:
                metrics.flush()
            self.saver.finish()  # the checkpoint before is one from here on, and its average stays
            if self.average is not None and self.place.is_main:
                self.average.write(step, checkpoint.steps_in(self.checkpoints))
            facts = setup.facts(self.config, self.parts.plan.shape, self.parts.classes, self.positions)
            self.saver.begin(self.engine, self.progress, facts)
        if last:
            self.saver.finish()
        return last

    def _prepared(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(video, targets, seeds, weights) of a micro batch on the device."""
        labels_B, seeds = self.to_device.numbers(self.parts.numbers(batch)), batch.seeds.tolist()
        batch = self.to_device(batch)
        video, targets_BC = self.mixer(batch.video, labels_B, seeds)
        return video, targets_BC, batch.seeds, batch.weight

    def _step(
        self, micro: list[tuple[Tensor, Tensor, Tensor, Tensor]], valid: float, limit: float, digest: float
    ) -> StepResult:
        """One update over the global batch, or none where the loss is above the limit or anything is not finite."""
        total = torch.zeros((), dtype=torch.float64, device=self.place.device)
        for index, (video, targets_BC, seeds_B, weight_B) in enumerate(micro):
            error_B = F.cross_entropy(self.engine(video, seeds_B).float(), targets_BC, reduction="none")
            loss = torch.where(weight_B > 0, error_B, 0.0).sum() / valid
            total += loss.detach()
            # a sum over the global batch, where the engine takes means over ranks and micro steps
            self.engine.backward(loss * self.place.world_size * self.accumulation)
            if index < self.accumulation - 1:
                self.engine.step()
        if self.place.world_size > 1:
            dist.all_reduce(total)
        outcome = make_update(self.engine, total.new_empty(0), total, limit)
        if self.average is not None and outcome.updated:
            self.average.update()
        return StepResult(
            outcome.loss, None, None, None, None, outcome.grad_norm, outcome.refusal, outcome.updated, digest
        )

    def _count(self, own: list[Problem], metrics: Metrics | None) -> None:
        """Every rank's broken samples of this step, named and counted. Raises ValueError where they are too many."""
        named = [problem for rank in self.control.gather(own) for problem in rank]
        if metrics is not None:
            metrics.name(self.progress.step, named)
        seen = self.progress.step * self.parts.plan.samples_per_step
        limit = self.config.data.max_skipped_share
        last = self.progress.step == self.steps
        self.progress.skipped = count_problems(self.progress.skipped, named, seen, limit, last)


def _digest(batches: list[Batch]) -> int:
    """Stands for the clips of this rank; the sum over ranks does not depend on which rank had which."""
    return sum(
        seeding.key("digest", key, seed) >> 23
        for batch in batches
        for key, seed in zip(batch.keys, batch.seeds.tolist())
    )
