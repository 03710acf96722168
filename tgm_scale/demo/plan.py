"""Size and folder of the demo, and its pretraining runs as processes of `tgm-scale pretrain`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.config import Config
from tgm_scale.runs.metrics import loss_in_words, read_metrics
from tgm_scale.runtime.processes import unwinding
from tgm_scale.runtime.progress import ProgressBars, Task

Figures = dict[str, Any]


VARIANTS = {  # overrides of the configuration
    "joint": [],
    "mae": ["objective.contrastive_weight=0"],
}


@dataclass(frozen=True)
class Plan:
    """Size and folder of the demo."""

    folder: Path
    config: str
    clips: int = 1000
    test_clips: int = 400
    seeds: int = 3
    steps: int | None = None

    def corpus(self, name: str) -> Path:
        return self.folder / "data" / name

    def run(self, variant: str, seed: int) -> Path:
        return self.folder / f"{variant}-{seed}"

    def overrides(self, variant: str, seed: int) -> list[str]:
        """Return the overrides of the configuration file for a run."""
        shards = json.dumps([str(self.corpus(name)) for name in ("named", "mover")])
        own = [configuration.override("run.dir", self.run(variant, seed)), f"run.seed={seed}", f"data.shards={shards}"]
        return own + ([f"train.steps={self.steps}"] if self.steps else []) + VARIANTS[variant]

    def run_config(self, variant: str = "joint", seed: int = 0) -> Config:
        return configuration.load(self.config, self.overrides(variant, seed))


SIDE_BY_SIDE = 2  # runs at a time, one core each: faster on two cores than one run on both


@unwinding()
def pretrain(plan: Plan, bars: ProgressBars) -> Figures:
    """Run every variant and seed by `tgm-scale pretrain`, several in parallel. An unfinished run is resumed."""
    waiting = [(variant, seed) for seed in range(plan.seeds) for variant in VARIANTS]
    steps = plan.run_config().train.steps
    assert steps is not None, "the demo's configuration gives train.steps"
    running: dict[subprocess.Popen, tuple[Path, Task]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < SIDE_BY_SIDE:
                variant, seed = waiting.pop(0)
                folder = plan.run(variant, seed)
                process = _start(plan, variant, seed)
                running[process] = (folder, bars.task(f"pretraining {folder.name}", steps))
            time.sleep(0.5)
            for process, (folder, task) in list(running.items()):
                rows = read_metrics(folder) if (folder / "metrics.jsonl").is_file() else []
                if rows:
                    last = rows[-1]
                    task.to(last["step"], f"loss {loss_in_words(last)}, {last['clips_per_second']:.0f} clips/s")
                if process.poll() is not None:
                    running.pop(process)
                    if process.returncode:
                        tail = "\n  ".join((folder / "output.log").read_text(encoding="utf-8").splitlines()[-15:])
                        raise ValueError(f"pretraining in {folder} failed; the end of its output:\n  {tail}")
    finally:
        for process in running:
            process.terminate()
            process.wait()
    return {}


def _start(plan: Plan, variant: str, seed: int) -> subprocess.Popen:
    folder = plan.run(variant, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tgm_scale", "pretrain", "--config", plan.config, *plan.overrides(variant, seed)]
    with (folder / "output.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
