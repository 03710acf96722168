"""The pretraining loop: two screens. Everything in it is a function of the step."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tgm_scale.config import Config
from tgm_scale.contracts import Problem
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import Control, Place, find_place
from tgm_scale.training import build, checkpoint, engine, run_folder
from tgm_scale.training.checkpoint import Progress
from tgm_scale.training.guide import Guide
from tgm_scale.training.metrics import Metrics, ProgressLine
from tgm_scale.training.module import JointModule
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE, StopRequest
from tgm_scale.training.step import JointStep, Prepared, StepResult
from tgm_scale.training.throughput import Throughput

_ENOUGH_TO_JUDGE = 64  # samples before the share of broken ones can stop a run


def pretrain(config: Config) -> int:
    """Start a run, or go on with the one in its folder. Returns the exit code: 0 when all steps are made,
    REQUEUE_EXIT_CODE when a signal stopped it after a checkpoint. Raises ValueError for a user's mistake."""
    place = find_place()
    build.check(config, place)
    folder = run_folder.claim(config)
    stop = StopRequest()
    engine.start_processes(place)
    code = _Run(config, folder, place, stop).train()
    engine.stop_processes()
    return code


class _Run:
    """The parts of a run and its loop."""

    def __init__(self, config: Config, folder: Path, place: Place, stop: StopRequest):
        self.config, self.folder, self.place, self.stop = config, folder, place, stop
        self.control = Control(place)
        self.checkpoints = folder / "checkpoints"
        if place.is_main:
            build.make_synthetic(config)
        self.control.barrier()
        self.corpora = build.corpora(config)
        samples = sum(len(corpus) for corpus in self.corpora)
        self.steps = build.total_steps(config, samples)
        self.schedule = build.schedule(config, self.steps)
        masker = build.masker(config)
        towers = build.towers(config, masker.needs, place.device)
        self.guide = Guide(masker, towers)
        contrastive = config.objective.contrastive_weight > 0
        width = towers.text.width if contrastive and towers.text is not None else None
        module = JointModule(build.model(config, width), contrastive)
        self.progress = Progress()
        newest = checkpoint.latest(self.checkpoints)
        if newest is None and config.train.init_from:
            build.initialise(module, config.train.init_from)
        if config.model.compile:
            module.model.compile()
        plan = build.engine_plan(config, place)
        self.engine = engine.build_engine(module, plan, place.device)
        if newest is not None:
            self.progress = checkpoint.restore(self.engine, newest)
        self.step = JointStep(
            self.engine,
            place,
            plan.accumulation,
            config.train.micro_batch_size,
            config.objective.reconstruction_weight,
            config.objective.contrastive_weight,
            config.objective.contrastive_batch or config.train.global_batch_size,
        )
        self.throughput = Throughput(build.macs_per_clip(config, masker), place.device)
        if place.is_main:
            facts = build.plan_facts(config, plan, masker, self.steps)
            run_folder.describe(folder, config, build.corpus_facts(self.corpora), facts)
            build.announce(config, facts, samples, masker, self.progress.step)

    def train(self) -> int:
        start = self.progress.step
        if start >= self.steps:
            return 0
        loader = build.loader(self.config, self.corpora, self.place, start, self.steps)
        main = self.place.is_main
        metrics = Metrics(self.folder, start, self.config.log.tensorboard) if main else None
        line = ProgressLine(self.steps, self.config.log.every) if main else None
        began = time.perf_counter()
        for step, batches in loader:
            loaded = time.perf_counter()
            micro = [self.guide(batch.to(self.place.device)) for batch in batches]
            digest = _digest(micro)
            guided = time.perf_counter()
            problems = [problem for batch in batches for problem in batch.problems]
            valid = float(sum(batch.weight.sum().item() for batch in batches))
            totals = self.control.sum([valid, len(problems), bool(self.stop.signal), digest])
            engine.set_learning_rate(self.engine, self.schedule(step + 1))
            result = self.step(micro, totals[0])
            self.progress.step = step + 1
            named = self._note_problems(problems) if totals[1] else []
            ended = time.perf_counter()
            row = self._row(result, totals, loaded - began, guided - loaded, ended - began)
            began = ended
            if metrics is not None and line is not None:
                for problem in named:
                    metrics.skipped(step + 1, problem.key, problem.reason, problem.detail)
                metrics.write(row)
                line.show(row)
                self.guide.warn_once()
            self._stop_on_nonsense(result, batches)
            stopping = totals[2] > 0
            if stopping or self.progress.step == self.steps or self.progress.step % self.config.checkpoint.every == 0:
                self._save()
                began = time.perf_counter()
            if stopping:
                return REQUEUE_EXIT_CODE
        if metrics is not None and line is not None:
            metrics.close()
            line.end()
        return 0

    def _save(self) -> None:
        facts, keep = build.facts(self.config), self.config.checkpoint.keep
        checkpoint.save(self.engine, self.progress, facts, self.checkpoints, keep, self.place, self.control)

    def _note_problems(self, own: list[Problem]) -> list[Problem]:
        """All ranks' broken samples of this step, counted. Raises ValueError above the share that is tolerated."""
        named = [problem for rank in self.control.gather(own) for problem in rank]
        counts = Counter(self.progress.skipped) + Counter(problem.reason for problem in named)
        self.progress.skipped = dict(sorted(counts.items()))
        seen = self.progress.step * self.config.train.global_batch_size
        limit = self.config.data.max_skipped_share
        if seen >= _ENOUGH_TO_JUDGE and counts.total() > limit * seen:
            raise ValueError(
                f"{counts.total()} of {seen} clips were broken ({_listed(self.progress.skipped)}), more than "
                f"data.max_skipped_share={limit}: look at {self.folder / 'skipped.jsonl'}, mend the shards or raise it"
            )
        return named

    def _row(
        self, result: StepResult, totals: list[float], data: float, guidance: float, whole: float
    ) -> dict[str, Any]:
        clips = self.config.train.global_batch_size
        row = {
            "step": self.progress.step,
            "samples": self.progress.step * build.samples_per_step(self.config),
            "loss": result.loss,
            "loss_reconstruction": result.reconstruction,
            "loss_contrastive": result.contrastive,
            "contrastive_accuracy": result.accuracy,
            "temperature": result.temperature,
            "learning_rate": self.schedule(self.progress.step),
            "grad_norm": result.grad_norm,
            "step_seconds": whole,
            "data_seconds": data,
            "guidance_seconds": guidance,
            "clips_per_second": clips / whole,
            "skipped_samples": sum(self.progress.skipped.values()),
            "data_digest": f"{int(totals[3]):014x}",
        }
        mfu = self.throughput.mfu(clips / whole / self.place.world_size)
        if mfu is not None:
            row["mfu"] = mfu
        return row | self.guide.figures()

    def _stop_on_nonsense(self, result: StepResult, batches: list[Any]) -> None:
        if not torch.isfinite(torch.tensor(result.loss)):
            keys = ", ".join(key for batch in batches for key in batch.keys)
            raise RuntimeError(f"loss {result.loss} at step {self.progress.step}; rank {self.place.rank} had {keys}")


def _digest(micro: list[Prepared]) -> int:
    """A number that stands for this rank's clips of the step: keys, seeds, crops, captions and masks.

    40 bits a clip, summed: the sum over ranks is exact in a float64 up to 8,192 clips and does not depend on which
    rank had which clip."""
    total = 0
    for part in micro:
        batch = part.batch
        order = torch.arange(1, part.mask.visible.shape[1] + 1, device=part.mask.visible.device)
        masks = (part.mask.visible * order).sum(1).tolist()
        rows = zip(batch.keys, batch.captions, batch.seeds.tolist(), batch.crops.tolist(), masks, strict=True)
        for key, caption, seed, crop, mask in rows:
            total += seeding.key("digest", key, caption, seed, *(str(side) for side in crop), mask) >> 23
    return total


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
