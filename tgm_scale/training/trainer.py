"""The training loop, the same for every task. Everything in it is a function of the step.

It handles processes, faults, checkpoints and metrics; a `Task` defines the step and its data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.config.sections import TrainingConfig
from tgm_scale.contracts import Problem
from tgm_scale.data.access.patience import StoppedWaiting
from tgm_scale.data.loading.workers import WorkerDied
from tgm_scale.engine import build as engine
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.runs import boards, run_folder
from tgm_scale.runs.metrics import Metrics, ProgressLine
from tgm_scale.runs.resume import Resume
from tgm_scale.runtime.distributed import HostCollectives
from tgm_scale.runtime.files import describe_os_error
from tgm_scale.runtime.processes import own_cores
from tgm_scale.training import garbage
from tgm_scale.training.deaths import end, until_death
from tgm_scale.training.guard import Guard
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE, StopRequest
from tgm_scale.training.profiling import Profiler, refuse_beyond
from tgm_scale.training.reporting import Reporter, Times, concluded, count_problems
from tgm_scale.training.task import PendingStep, StepResult, Task
from tgm_scale.training.watchdog import ASIDE, Watchdog


@dataclass(frozen=True)
class Start:
    """One start of a run: its folder, its processes, and its stop conditions."""

    folder: Path
    collectives: HostCollectives
    stop: StopRequest
    watchdog: Watchdog


class _Synchronised(NamedTuple):
    """Values that the ranks exchange before an update."""

    valid: float  # clips with weight
    broken: bool  # whether any is broken
    stopping: bool
    given_up: bool  # whether some rank stopped while it waited for its clips


class Trainer:
    """Trainer of a task, from the newest checkpoint or from the beginning. The constructor is collective."""

    def __init__(self, config: TrainingConfig, task: Task, start: Start):
        self.config, self.task, self.start = config, task, start
        self.folder, self.collectives, self.watchdog = start.folder, start.collectives, start.watchdog
        process, plan = start.collectives.process, task.plan
        assert plan.steps is not None
        refuse_beyond(config.profile, plan.steps)
        self.process, self.plan, self.steps, self.schedule = process, plan, plan.steps, plan.schedule
        retention = checkpoint.Retention(config.checkpoint.keep, config.checkpoint.keep_every)
        self.checkpoints = self.folder / "checkpoints"
        self.saver = Saver(self.checkpoints, retention, process, self.collectives)
        resume = Resume(self.folder, self.collectives)
        module = task.build_module(resume.newest)
        if config.model.compile:
            compile_blocks(module)
        free = max(1, own_cores() - config.data.workers)
        self.engine = engine.build_engine(module, plan.engine, process.device, task.parameter_groups(module), free)
        self.progress = resume.restore(self.engine)
        task.setup(self.engine)
        self.guard = Guard(config.faults, self.folder, self.collectives)
        self.reporter = Reporter(plan)
        self.profiler = Profiler(config.profile, self.folder, process)
        self.metrics: Metrics | None = None  # main process only, while steps are made
        self.last: dict[str, Any] | None = None  # metrics row of the last step that this start made
        self._restore_task()
        if process.is_main:
            run_folder.write_start(self.folder, config, task.data_metadata(), plan.facts(), self.progress.step)
            task.print_start(self.progress.step)

    def train(self) -> int:
        """Make the remaining steps. Returns the exit code."""
        began, first = time.monotonic(), self.progress.step
        settings = self.config.log.wandb if self.process.is_main else None
        with garbage.paused(), boards.others(self.folder, self.config, settings) as self.boards:
            while (code := self._train_until_rollback()) is None:
                self._roll_back()
            self.watchdog.at(self.progress.step, ASIDE)  # sending what is queued may take a while
        if self.process.is_main and not code:
            made, seconds = self.progress.step - first, time.monotonic() - began
            print(
                f"{concluded(made, seconds, self.last, self.progress.updates)}. {self.task.closing_message()}",
                flush=True,
            )
        return code

    def _train_until_rollback(self) -> int | None:
        """Make steps until the end or a stop, and return the exit code; return None where a rollback is due."""
        if self.process.is_main:
            self.metrics = Metrics(self.folder, self.progress.step, self.config.log.tensorboard, self.boards)
        try:
            return self._make_steps()
        finally:
            self.profiler.close(self.progress.step)
            if self.metrics is not None:
                self.metrics.close()

    def _make_steps(self) -> int | None:
        progress, first = self.progress, self.progress.step
        line = ProgressLine(self.steps, self.config.log.every)
        self._turn_trace()
        self._begin_phase(first, "data")
        began = asked = time.perf_counter()
        for ready, death in until_death(self._ready(), PendingStep(first, [], list)):
            loaded = time.perf_counter()
            self._begin_phase(ready.step, "guidance")
            micro = ready.prepare()
            self._begin_phase(ready.step, "meeting")
            problems = [problem for batch in ready.batches for problem in batch.problems]
            shared = self._synchronise(ready, len(problems), death, first)
            if shared.given_up:
                return self._stopped(line, first)
            self._begin_phase(ready.step, "update")
            learning_rate = self.schedule(ready.step + 1)
            engine.set_learning_rate(self.engine, learning_rate)
            result = self._step(micro, shared.valid)
            progress.step = ready.step + 1
            progress.updates += result.updated
            if shared.broken or progress.step == self.steps:
                self._count_problems(problems)
            guiding = self.task.guidance_seconds()
            self.watchdog.book(guiding if self.process.device.type == "cuda" else 0.0, "guidance", "update")
            ended = time.perf_counter()
            measured = self.task.evaluate() if self._due(self.task.evaluate_every) else {}
            self._log_step(line, result, Times(ended - began, loaded - asked, guiding), learning_rate, measured)
            if pictured := self._due(self.task.visualise_every):
                self._draw()
            began = time.perf_counter() if measured or pictured else ended
            if self.guard.note(progress, result, ready.batches):
                return None
            last = shared.stopping or progress.step == self.steps
            if last or progress.step % self.config.checkpoint.every == 0:
                self._save(last)
            if shared.stopping:
                if self.process.is_main:
                    reason = self.start.stop.reason
                    line.say(f"stopped at step {progress.step} by {reason}; the same command resumes")
                return REQUEUE_EXIT_CODE
            garbage.collect_at(progress.step)
            began += self._turn_trace()
            self._begin_phase(progress.step, "data")
            asked = time.perf_counter()
        return 0

    def _begin_phase(self, made: int, phase: str) -> None:
        """Mark the beginning of a phase of the step after `made` steps."""
        self.watchdog.at(made, phase)
        self.profiler.at(made + 1, phase)

    def _turn_trace(self) -> float:
        """Begin or write a trace where one begins or ends before the next step. Returns the seconds that it took."""
        made = self.progress.step
        if not self.profiler.turns(made + 1):
            return 0.0
        self.watchdog.at(made, ASIDE)
        return self.profiler.turn(made + 1)

    def _ready(self) -> Iterator[PendingStep]:
        """Return the remaining steps, without the samples on the skip list."""
        loader = self.task.loader(range(self.progress.step, self.steps))
        return self.task.prepare_steps(self.guard.without_skipped(loader))

    def _synchronise(
        self, ready: PendingStep, broken: int, death: WorkerDied | StoppedWaiting | None, first: int
    ) -> _Synchronised:
        """Exchange what each rank has met. Where a data worker died, all ranks save and end alike. Collective."""
        valid = sum(float(batch.weight.sum()) for batch in ready.batches)
        dead, stopped = isinstance(death, WorkerDied), isinstance(death, StoppedWaiting)
        own = [valid, broken, self.start.stop.asked(), self.saver.written(), dead, stopped]
        valid, broken_of_all, stopping, written, died, given_up = self.collectives.sum(own)
        if died:
            end(
                death if isinstance(death, WorkerDied) else None,
                lambda: self._save(last=True) if self.progress.step > first else None,
            )
        if written == self.process.world_size:
            self.saver.finish()
        return _Synchronised(valid, broken_of_all > 0, stopping > 0, given_up > 0)

    def _stopped(self, line: ProgressLine, first: int) -> int:
        """End between two steps because clips did not arrive, after saving the steps made. Collective."""
        if self.progress.step > first:
            self._save(last=True)
        if self.process.is_main:
            line.say(
                f"stopped at step {self.progress.step} by {self.start.stop.reason}, while clips were waited for; the "
                "same command resumes"
            )
        return REQUEUE_EXIT_CODE

    def _step(self, micro: list[Any], valid: float) -> StepResult:
        """Make the update, except where no clip has weight: weight decay and momentum would move the weights."""
        if valid:
            return self.task.step(micro, valid, self.guard.limit())
        return StepResult.without_clips(self.task.step(micro, valid, limit=-math.inf).digest)

    def _due(self, every: int | None) -> bool:
        """Return whether the task's work of every `every` steps is due now; if so, begin the phase `ASIDE` for it."""
        if every is None or self.progress.step % every:
            return False
        self.watchdog.at(self.progress.step, ASIDE)
        return True

    def _draw(self) -> None:
        picture = self.task.visualise()
        if self.metrics is not None and picture is not None:
            self.metrics.picture(self.progress.step, picture)

    def _log_step(
        self, line: ProgressLine, result: StepResult, times: Times, learning_rate: float, measured: dict[str, float]
    ) -> None:
        """Write the step's row of metrics, and show the progress line."""
        if self.metrics is not None:
            self.last = self.reporter.row(self.progress, result, times, learning_rate)
            self.metrics.write(self.last | self.task.metrics() | measured)
            line.show(self.last)
            if result.loss is None:
                line.say(f"warning: step {self.progress.step}: none of its clips can be used: no update was made")
            elif result.refusal is not None:
                why = f"{result.refusal}; refused.jsonl names its clips"
                line.say(f"warning: step {self.progress.step}: its update was skipped: {why}")

    def _count_problems(self, own: list[Problem]) -> None:
        """Collect and count every rank's broken samples of this step. Raises ValueError where there are too many."""
        named = [problem for rank in self.collectives.gather(own) for problem in rank]
        if self.metrics is not None:
            self.metrics.log_problems(self.progress.step, named)
        seen = self.progress.step * self.plan.samples_per_step
        limit = self.config.data.max_skipped_share
        last = self.progress.step == self.steps
        self.progress.skipped = count_problems(self.progress.skipped, named, seen, limit, last)

    def _save(self, last: bool) -> None:
        """Begin to write a checkpoint, and wait for it where it is the last of this start. Collective."""
        step = self.progress.step
        self.watchdog.at(step, "checkpoint")
        if self.metrics is not None:
            self.metrics.flush()
        self.saver.finish()  # completes the previous checkpoint, so that the state beside it is retained
        if error := self.collectives.broadcast(self._write_extra_state(step) if self.process.is_main else None):
            raise OSError(error)
        self.saver.begin(self.engine, self.progress, self.task.checkpoint_metadata())
        if last:
            self.saver.finish()
            self.saver.settle()

    def _write_extra_state(self, step: int) -> str | None:
        try:
            self.task.write_extra_state(step, folders.steps_in(self.checkpoints))
        except OSError as error:
            return f"beside the checkpoint of step {step}: {describe_os_error(error, self.folder)}"
        return None

    def _restore_task(self) -> None:
        """Restore the task and the guard from the checkpoint that the engine was set to, if any."""
        if self.progress.step:
            self.task.load_extra_state(self.progress.step)
        self.guard.begin(self.progress)

    def _roll_back(self) -> None:
        """Return to the last checkpoint, and leave out the refused steps' samples. Raises Diverged after too many."""
        self.watchdog.at(self.progress.step, "checkpoint")  # reads one, and may wait for one to be written
        self.saver.finish()
        resume = Resume(self.folder, self.collectives)
        self.guard.roll_back(self.progress, resume.newest)
        self.progress = resume.restore(self.engine)
        self._restore_task()
