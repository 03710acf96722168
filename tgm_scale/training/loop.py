"""The pretraining loop: two screens. Everything in it is a function of the step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tgm_scale.checkpoints import checkpoint
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.config import Config
from tgm_scale.contracts import Batch, Problem
from tgm_scale.data.loading.to_device import ToDevice
from tgm_scale.data.loading.workers import WorkerDied
from tgm_scale.engine import build as engine
from tgm_scale.evaluation.online import Neighbours
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.planning import disk
from tgm_scale.planning.checks import check
from tgm_scale.planning.corpora import (
    corpus_facts,
    make_synthetic,
    open_corpora,
    refuse_one_clip,
    storage_seconds,
)
from tgm_scale.planning.parts import (
    checkpoint_facts,
    clip_loader,
    initialise,
    joint_module,
    pixel_statistics,
)
from tgm_scale.planning.run_plan import RunPlan, plan_pretraining
from tgm_scale.planning.towers import load_towers
from tgm_scale.runs import run_folder
from tgm_scale.runs.faults import Diverged, FaultState, Judge, RunStopped, note_refusal
from tgm_scale.runs.metrics import Metrics, ProgressLine, recent_losses_for_all
from tgm_scale.runs.resume import Resume
from tgm_scale.runtime.distributed import Control, find_place
from tgm_scale.training import ahead, introduction
from tgm_scale.training.deaths import end, until_death
from tgm_scale.training.guide import Guide
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE, StopRequest
from tgm_scale.training.reporting import Times, count_problems, row
from tgm_scale.training.step import JointStep, StepResult
from tgm_scale.training.throughput import Throughput
from tgm_scale.training.watchdog import Watchdog


def pretrain(config: Config) -> int:
    """Start a run, or go on with the one in its folder.

    Returns the exit code: 0 when all steps are made, REQUEUE_EXIT_CODE when a signal or the time limit stopped it
    after a checkpoint. Raises ValueError for a user's mistake, RunStopped or OSError where the run cannot go on."""
    place = find_place()
    plan = plan_pretraining(config, place)
    check(config, plan)
    folder = run_folder.claim(config)
    disk.check_room(folder, config.checkpoint, config.train.steps, plan.shape.size)
    stop = StopRequest(config.train.max_minutes)
    engine.start_processes(place, config.faults.start_seconds)
    control = Control(place)
    with run_folder.owned(folder, control):
        watchdog = Watchdog(folder, place, config.faults.hang_seconds, stop.ask, storage_seconds(config.data))
        try:
            code = _Run(config, plan, folder, control, stop, watchdog).train()
            engine.stop_processes()
        except Exception as error:
            watchdog.end("failed")
            of_another_rank = isinstance(error, RuntimeError) and not isinstance(error, (RunStopped, WorkerDied))
            if place.world_size == 1 or not of_another_rank:
                raise
            waited = watchdog.culprits()
            raise RunStopped(f"{error}\nrank {place.rank} stops; it may have waited for {waited}") from error
        watchdog.end(f"stopped by {stop.reason}" if code else "done")
    return code


class _RollBack(Exception):
    """Too many refused updates in a row: go back to the last checkpoint."""


class _Run:
    """The parts of a run and its loop."""

    def __init__(
        self,
        config: Config,
        plan: RunPlan,
        folder: Path,
        control: Control,
        stop: StopRequest,
        watchdog: Watchdog,
    ):
        self.config, self.folder, self.control, self.stop, self.watchdog = config, folder, control, stop, watchdog
        place = self.place = control.place
        self.checkpoints = folder / "checkpoints"
        retention = checkpoint.Retention(config.checkpoint.keep, config.checkpoint.keep_every)
        self.saver = Saver(self.checkpoints, retention, place, self.control)
        opened = None
        if place.is_main:
            make_synthetic(config.data)
            # builds the indices of foreign shards, once
            opened = open_corpora(config.data, plan.captions, plan.without_captions)
        self.control.barrier()
        self.corpora = opened or open_corpora(config.data, plan.captions, plan.without_captions)
        refuse_one_clip(self.corpora, config.objective.contrastive_weight)
        samples = sum(len(corpus) for corpus in self.corpora)
        self.plan = plan = plan.for_samples(config.train, samples)
        assert plan.steps is not None and plan.masker is not None
        self.steps, self.schedule = plan.steps, plan.schedule
        contrastive = config.objective.contrastive_weight > 0
        towers = load_towers(config.guidance, plan.masker.needs, contrastive, place.device)
        self.guide = Guide(plan.masker, towers, ToDevice(place.device))
        module = joint_module(config, plan.shape, towers)
        resume = Resume(folder, self.control)
        if resume.newest is None and (origin := config.train.init_from):
            notes = initialise(module, origin, plan.shape, pixel_statistics(config.data))
            if place.is_main:
                print("\n".join([f"weights of {origin}", *notes]), flush=True)
        if config.model.compile:
            compile_blocks(module)
        self.engine = engine.build_engine(module, plan.engine, place.device)
        self.progress = resume.restore(self.engine)
        self.faults, damage = FaultState.found(folder)
        if damage and place.is_main:
            print(f"warning: {damage}", file=sys.stderr, flush=True)
        self.suspects: list[str] = []
        self.last: dict[str, Any] | None = None  # row of metrics, of the last step that this start made
        self.step = JointStep(
            self.engine,
            place,
            plan.layout.accumulation,
            plan.layout.micro_batch,
            config.objective.reconstruction_weight,
            config.objective.contrastive_weight,
            config.objective.contrastive_batch or plan.layout.global_batch,
        )
        self.neighbours = Neighbours(config, self.control) if config.knn.every else None
        self.throughput = Throughput(plan.macs_per_clip, place.device)
        if place.is_main:
            run_folder.describe(folder, config, corpus_facts(self.corpora), plan.facts(), self.progress.step)
            scored_anew = "relevance" in plan.masker.needs and not config.guidance.cached
            introduction.introduce(folder, self.corpora, plan.samples_per_step, scored_anew)
            if contrastive:
                introduction.warn_of_one_caption(self.corpora)
            for line in introduction.other_synthetic(config.data, self.corpora[0]):
                print(line, flush=True)
            introduction.announce(folder, plan, samples, self.progress.step)

    def train(self) -> int:
        """Make the steps that are left. Returns the exit code."""
        began, first = time.monotonic(), self.progress.step
        while True:
            start = self.progress.step
            # checkpoints of before have none: then those of metrics.jsonl
            losses = self.progress.losses or recent_losses_for_all(self.folder, start, self.control)
            judge = Judge(self.config.faults.spike_factor, losses)
            metrics = Metrics(self.folder, start, self.config.log.tensorboard) if self.place.is_main else None
            try:
                if code := self._stretch(judge, metrics):
                    return code
                break
            except _RollBack:
                self._roll_back()
            finally:
                if metrics is not None:
                    metrics.close()
        if self.place.is_main:
            introduction.conclude(self.folder, self.progress.step - first, time.monotonic() - began, self.last)
        return 0

    def _stretch(self, judge: Judge, metrics: Metrics | None) -> int:
        """Steps from where the run stands to its end, a stop, or a rollback."""
        config, watchdog = self.config, self.watchdog
        line = ProgressLine(self.steps, config.log.every)
        began = time.perf_counter()
        watchdog.at(first := self.progress.step, "data")
        for (step, batches, looks), death in until_death(self._looks(), (first, [], [])):
            loaded = time.perf_counter()
            watchdog.at(step, "guidance")
            micro = [self.guide.prepare(look()) for look in looks]
            watchdog.at(step, "meeting")
            problems = [problem for batch in batches for problem in batch.problems]
            valid = sum(float(batch.weight.sum()) for batch in batches)
            own = [valid, len(problems), self.stop.asked(), self.saver.written(), death is not None]
            valid, broken, stopping, written, died = self.control.sum(own)
            if died:
                end(death, lambda: self._save(metrics, last=True) if self.progress.step > first else None)
            if written == self.place.world_size:
                self.saver.finish()
            watchdog.at(step, "update")
            learning_rate = self.schedule(step + 1)
            engine.set_learning_rate(self.engine, learning_rate)
            result = self.step(micro, valid, judge.limit())
            judge.note(result.loss, result.refusal is not None)
            self.progress.step = step + 1
            self.progress.updates += result.updated
            self.progress.losses = list(judge.recent)
            if broken or self.progress.step == self.steps:
                self._count(problems, metrics)
            guiding = self.guide.clock.seconds()
            watchdog.book(guiding if self.place.device.type == "cuda" else 0.0, "guidance", "update")
            ended = time.perf_counter()
            watched = self._watched()
            if metrics is not None:
                values = row(
                    self.progress.step,
                    result,
                    Times(ended - began, loaded - began, guiding),
                    config.train.global_batch_size,
                    config.data.repeated_augmentation,
                    learning_rate,
                    self.progress.skipped,
                    self.throughput,
                    self.place.world_size,
                )
                self.last = values
                metrics.write(values | self.guide.figures() | watched)
                line.show(values)
                self.guide.warn_once()
            began = time.perf_counter() if watched else ended
            if result.refusal is None:
                self.suspects = []
            else:
                self._refused(judge, result, batches)
            last = stopping or self.progress.step == self.steps
            if last or self.progress.step % config.checkpoint.every == 0:
                self._save(metrics, bool(last))
            if stopping:
                if metrics is not None:
                    line.say(f"stopped at step {self.progress.step} by {self.stop.reason}; the same command goes on")
                return REQUEUE_EXIT_CODE
            watchdog.at(self.progress.step, "data")
        return 0

    def _save(self, metrics: Metrics | None, last: bool) -> None:
        """Begin to write a checkpoint, and wait for it where it is the last of this start. Collective."""
        self.watchdog.at(self.progress.step, "checkpoint")
        if metrics is not None:
            metrics.flush()
        self.saver.begin(self.engine, self.progress, checkpoint_facts(self.config, self.plan.shape))
        if last:
            self.saver.finish()

    def _looks(self) -> Iterator[ahead.Step]:
        """The steps that are left, with what the frozen models say of their clips."""
        config, left = self.config, range(self.progress.step, self.steps)
        loader = clip_loader(self.plan, config.data, config.guidance, config.run.seed, self.corpora, left)
        steps = self.guide.to_device.ahead(self._without_skipped(loader))
        if self.config.guidance.own_stream:
            return ahead.step_ahead(steps, self.guide.look, self.place.device)
        return ahead.in_step(steps, self.guide.look)

    def _without_skipped(self, steps: Iterable[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch]]]:
        for step, batches in steps:
            for batch in batches:
                self.faults.leave_out(batch)
            yield step, batches

    def _watched(self) -> dict[str, float]:
        """Figures of the model, where they are due."""
        every = self.config.knn.every
        if self.neighbours is None or every is None or self.progress.step % every:
            return {}
        self.watchdog.at(self.progress.step, "checkpoint")  # as patient
        return self.neighbours(self.engine.module.model)

    def _count(self, own: list[Problem], metrics: Metrics | None) -> None:
        """Every rank's broken samples of this step, named and counted. Raises ValueError where they are too many."""
        named = [problem for rank in self.control.gather(own) for problem in rank]
        if metrics is not None:
            metrics.name(self.progress.step, named)
        seen = self.progress.step * self.plan.samples_per_step
        limit = self.config.data.max_skipped_share
        last = self.progress.step == self.steps
        self.progress.skipped = count_problems(self.progress.skipped, named, seen, limit, last)

    def _refused(self, judge: Judge, result: StepResult, batches: list[Batch]) -> None:
        """Name the samples of a refused update. Raises _RollBack after too many in a row."""
        assert result.refusal is not None
        keys = self.control.gather([key for batch in batches for key in batch.keys])
        if self.place.is_main:
            note_refusal(self.folder, self.progress.step, result.loss, result.refusal, keys)
        self.suspects += [key for rank in keys for key in rank]
        if judge.refused_in_a_row >= self.config.faults.refused_before_rollback:
            raise _RollBack

    def _roll_back(self) -> None:
        """Back to the last checkpoint, without the samples of the refused steps. Raises Diverged after too many."""
        self.watchdog.at(self.progress.step, "checkpoint")  # reads one, and may wait for one to be written
        self.saver.finish()
        resume = Resume(self.folder, self.control)
        newest = resume.newest
        step, limit = self.progress.step, self.config.faults.rollbacks
        if newest is None or self.faults.rollbacks == limit:
            why = "before the first checkpoint" if newest is None else f"after faults.rollbacks={limit} rollbacks"
            raise Diverged(
                f"updates were refused up to step {step}, {why}; refused.jsonl in {self.folder} names steps, "
                f"reasons and samples. Lower optim.base_lr, or look at those samples"
            )
        self.faults.rollbacks += 1
        self.faults.skip_list = sorted({*self.faults.skip_list, *self.suspects})
        self.suspects = []
        if self.place.is_main:
            self.faults.write(self.folder)
            print(f"rolling back from step {step} to {newest.name}; {len(self.faults.skip_list)} samples left out")
        self.progress = resume.restore(self.engine)
