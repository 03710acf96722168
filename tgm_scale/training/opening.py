"""Start and end of a run, the same for every task: its folder, processes and watchdog."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from tgm_scale.assembly import disk
from tgm_scale.assembly.run_plan import RunPlan
from tgm_scale.config.sections import TrainingConfig
from tgm_scale.data.access.patience import Stopped, StoppedWaiting, waits_end_when
from tgm_scale.data.loading.workers import WorkerDied
from tgm_scale.engine import build as engine
from tgm_scale.evaluation.settings import FinetuneConfig
from tgm_scale.planning.footprint import parameters_of
from tgm_scale.runs import run_folder
from tgm_scale.runs.faults import RunStopped
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.preemption import REQUEUE_EXIT_CODE, StopRequest
from tgm_scale.training.task import Task
from tgm_scale.training.trainer import Start, Trainer
from tgm_scale.training.watchdog import Watchdog, group_seconds


def run(
    config: TrainingConfig,
    plan: RunPlan,
    process: ProcessInfo,
    storage_seconds: float,
    task_of: Callable[[Start], Task],
) -> int:
    """Start a run, or resume the one in its folder.

    plan: made before the data is opened; storage_seconds: how long a rank may wait for its storage; task_of: opens the
    data, once the processes are connected. Returns the exit code: 0 when all steps are made, REQUEUE_EXIT_CODE when a
    signal or the time limit stopped the run after a checkpoint. Raises ValueError for a user's mistake, RunStopped or
    OSError where the run cannot continue."""
    folder = run_folder.open_folder(config)
    check_room(config, plan, folder)
    stop = StopRequest(config.train.max_minutes, reports=process.is_main)
    patience = group_seconds(config.faults.hang_seconds, storage_seconds)
    engine.start_processes(process, config.faults.start_seconds, patience)
    collectives = HostCollectives(process, patience)
    with run_folder.owned(folder, collectives):
        watchdog = Watchdog(folder, process, config.faults.hang_seconds, stop.ask, storage_seconds)
        try:
            with waits_end_when(stop.asked):
                task = task_of(start := Start(folder, collectives, stop, watchdog))
                watchdog.opened()
                code = Trainer(config, task, start).train()
                # from here on ranks do not synchronise at steps
                watchdog.end(f"stopped by {stop.reason}" if code else "done")
                if code == 0:
                    stop.end = "stops after the clips under way; the same command goes on from there"
                    task.finish()
            engine.stop_processes()
        except Stopped as stopped:  # before the first step, or after the last
            watchdog.end(f"stopped by {stop.reason}")
            if process.is_main or isinstance(stopped, StoppedWaiting):
                print(f"{stopped}, by {stop.reason}; the same command resumes", file=sys.stderr, flush=True)
            return REQUEUE_EXIT_CODE
        except Exception as error:
            watchdog.end("failed")
            of_another_rank = isinstance(error, RuntimeError) and not isinstance(error, (RunStopped, WorkerDied))
            if process.world_size == 1 or not of_another_rank:
                raise
            waited = watchdog.stalled_ranks()
            raise RunStopped(f"{error}\nrank {process.rank} stops; it may have waited for {waited}") from error
    return code


def check_room(config: TrainingConfig, plan: RunPlan, folder: Path) -> None:
    """Raise ValueError where the disk has no room for the checkpoints."""
    disk.check_room(folder, config.checkpoint, config.train.steps, checkpoint_bytes(config, plan))


def checkpoint_bytes(config: TrainingConfig, plan: RunPlan) -> int:
    """Return a checkpoint's bytes: parameters, the optimizer's moments, and averaged weights if any, in fp32."""
    averaged = isinstance(config, FinetuneConfig) and config.finetune.ema is not None
    return 4 * (1 + plan.engine.moments + averaged) * parameters_of(plan)
