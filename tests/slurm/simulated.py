"""A SLURM cluster of three simulated nodes on this host, and waiting for what happens on it."""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tgm_scale.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]


class Cluster:
    """The running cluster; jobs are those of the real scripts in slurm/, submitted from the root of the repository."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}
        # jobs find the checkout's package by themselves, and have ranks of their own
        for name in ("PYTHONPATH", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            self.environment.pop(name, None)

    def run(self, *command: str, seconds: float = 120, code: int | None = 0) -> str:
        """Output of a command; fails where its exit code is another. code=None: any."""
        done = subprocess.run(
            command, env=self.environment, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
        assert code in (None, done.returncode), f"{command}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def submit(
        self,
        script: str,
        output: Path,
        facts: dict[str, str],
        *arguments: str,
        options: Sequence[str] = ("--nodes=2",),
    ) -> str:
        """sbatch of a script; `facts` are the lines of its cluster.env. Returns the job's id."""
        self.environment["TGM_CLUSTER"] = str(write_facts(output, facts))
        size = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=100")
        log = f"--output={output}/job-%j.log"
        return self.run("sbatch", "--parsable", *size, *options, log, f"{ROOT}/slurm/{script}", *arguments).strip()

    def state(self, job: str) -> str:
        return self.fact(job, "JobState")

    def fact(self, job: str, name: str) -> str:
        words = self.run("scontrol", "show", "job", job).split()
        return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")

    def preempt_all(self) -> None:
        """A job of the urgent partition takes all nodes for a moment."""
        whole = ("--partition=urgent", "--nodes=3", "--exclusive", "--reservation=tests", "--output=/dev/null")
        assert self.finish(self.run("sbatch", "--parsable", *whole, "--wrap=true").strip(), 60) == "COMPLETED"

    def finish(self, job: str, seconds: float = 300) -> str:
        """The state that a job ends in."""
        ends = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        wait_for(lambda: self.state(job) in ends, seconds, lambda: self.run("scontrol", "show", "job", job))
        return self.state(job)

    def let_go(self, job: str, why: Callable[[], str], seconds: float = 60) -> float:
        """Wait until a job was requeued, and let it start at once: SLURM holds it back for two minutes. Returns the
        seconds until it was."""
        seconds = wait_for(lambda: self.state(job) == "PENDING", seconds, why)
        time.sleep(3)  # started within a second of its end, it is refused with "credential revoked"
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now")
        return seconds

    def clear(self) -> None:
        """No jobs, and healthy nodes."""
        self.set_prolog("")
        self.run("scancel", "--quiet", f"--user={getpass.getuser()}", code=None)
        wait_for(lambda: not self.run("squeue", "--noheader"), 60, lambda: self.run("squeue"))

    def spoil(self, node: str) -> None:
        """Give a node's tasks another numpy than the others have, as an outdated image does."""
        package = self.folder / "outdated" / "numpy-0.1.dist-info"
        package.mkdir(parents=True)
        (package / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
        self.set_prolog(f'[ "$SLURMD_NODENAME" = {node} ] && echo "export PYTHONPATH={package.parent}"')

    def set_prolog(self, line: str) -> None:
        """The command that runs before each task; lines `export NAME=value` of its output are set for the task."""
        (self.folder / "task_prolog.sh").write_text(f"#!/bin/bash\n{line}\nexit 0\n")


def write_facts(folder: Path, facts: dict[str, str]) -> Path:
    """A cluster.env that suits this cluster, with `facts` on top."""
    lines = {"TGM_PYTHON": sys.executable, "TGM_NETWORK": "lo", "TGM_SCRATCH": str(folder), **facts}
    file = folder / "cluster.env"
    file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
    return file


def log_of(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("job-*.log")))


def wait_for(condition: Callable[[], bool], seconds: float, why: Callable[[], str] = str) -> float:
    """Seconds until the condition holds; fails after `seconds`, with the text of `why`."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"still not so after {seconds} s\n{why()}"
        time.sleep(0.3)
    return time.monotonic() - began


def steps_of(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.jsonl").is_file() else 0


def pid_of(run: Path, rank: int) -> int:
    return json.loads((run / "ranks" / f"{rank:05d}").read_text())["pid"]


def overrides(run: Path, shards: Path, steps: int) -> list[str]:
    """A configuration of configs/pretrain_*.yaml cut down to what two cores do in seconds."""
    return [
        *(f"run.dir={run}", f"data.shards={shards}", "data.frames=4", "data.stride=2", "data.size=32"),
        *("data.workers=0", "data.repeated_augmentation=1", "guidance.towers=null", "masking.recipe=tube"),
        *("model.size=tiny", "objective.contrastive_weight=0", f"train.steps={steps}", "train.global_batch_size=16"),
        *("train.micro_batch_size=8", "train.precision=fp32", "checkpoint.every=10", "log.every=1"),
        "log.tensorboard=false",
    ]
