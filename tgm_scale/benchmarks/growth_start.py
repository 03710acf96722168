"""A start of `tgm-scale pretrain` in its own process, with the time after each part, and the memory of trainer and
data workers in its last step. Writes FOLDER/0.json."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

from torch import nn

from tgm_scale import config as configuration
from tgm_scale.assembly.checks import check
from tgm_scale.assembly.corpora import storage_seconds
from tgm_scale.assembly.run_plan import RunPlan, plan_pretraining
from tgm_scale.runtime.command import leave
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training.opening import run
from tgm_scale.training.pretraining import Pretraining
from tgm_scale.training.step import PreparedBatch
from tgm_scale.training.task import StepResult
from tgm_scale.training.trainer import Start

PARTS = (
    "imports",
    "configuration",
    "processes",
    "data, frozen models",
    "model",
    "engine",
    "first batch",
    "first step",
)
STEPS = 4


class Looks:
    """Times at the end of each part: seconds since the epoch, and CPU seconds of this process."""

    def __init__(self) -> None:
        self.clock: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.read_MB = 0.0  # from storage so far

    def __call__(self, part: str) -> None:
        self.clock[part], self.cpu[part] = time.time(), time.process_time()
        self.read_MB = _read_bytes() / 1e6


def _read_bytes() -> int:
    rows = dict(row.split(": ") for row in Path("/proc/self/io").read_text().splitlines())
    return int(rows["read_bytes"])


class _Watched(Pretraining):
    def __init__(self, looks: Looks, config: configuration.Config, plan: RunPlan, start: Start):
        looks("processes")  # DeepSpeed is imported in this part, too
        super().__init__(config, plan, start)
        looks("data, frozen models")
        self.looks, self.made = looks, 0
        self.memory: dict[str, Any] = {}

    def build_module(self, newest: Path | None) -> nn.Module:
        found = super().build_module(newest)
        self.looks("model")
        return found

    def setup(self, engine: Any) -> None:
        self.looks("engine")
        super().setup(engine)

    def step(self, micro: list[PreparedBatch], valid: float, limit: float) -> StepResult:
        if not self.made:
            self.looks("first batch")
        result = super().step(micro, valid, limit)
        self.made += 1
        if self.made == 1:
            self.looks("first step")
        if self.made == STEPS:
            from tgm_scale.benchmarks.machine import resident_mb  # after the timed parts

            workers = [child.pid for child in multiprocessing.active_children() if child.pid]
            self.memory = {"trainer_MB": resident_mb(os.getpid()), "worker_MB": [*map(resident_mb, workers)]}
        return result


def main(folder: Path, overrides: list[str]) -> None:
    looks = Looks()
    looks("imports")
    config = configuration.load("debug", overrides)
    process = find_process()
    plan = plan_pretraining(config, process)
    check(config, plan)
    looks("configuration")
    tasks: list[_Watched] = []

    def task_of(start: Start) -> _Watched:
        tasks.append(_Watched(looks, config, plan, start))
        return tasks[0]

    code = run(config, plan, process, storage_seconds(config.data), task_of)
    assert code == 0, f"the run ended with exit code {code}"
    from tgm_scale.benchmarks.machine import save

    save(folder / "0.json", {"clock": looks.clock, "cpu": looks.cpu, "read_MB": looks.read_MB, **tasks[0].memory})


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
    leave()
