"""`sbatch --nodes=2 slurm/tune.sh`: trials are real steps on both nodes. One hangs, one crashes, one asks for more
memory than it may; a signal stops another, and the requeued job goes on with it; the JSON at the end runs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated import Cluster, log_of, overrides, pid_of, steps_of, wait_for

from tgm_scale.runs import run_folder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

# in the order of the trials, after the configuration as it is
FIRST, HUNG, LARGE = "zero0-micro2", "zero0-micro1", "zero0-micro16"
CRASHED, STOPPED = "zero0-micro1-checkpointing", "zero0-micro16-checkpointing"


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


def outcomes(folder: Path) -> dict[str, str]:
    """By the name of the trial; in turn, where one was made twice."""
    file = folder / "outcomes.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    return {
        name: " ".join(row["outcome"] for row in rows if row["name"] == name) for name in {r["name"] for r in rows}
    }


def test_trials_are_steps_on_all_nodes(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tune"

    def started(name: str) -> int:
        """The process of a trial on the second node, once it trains."""
        why = lambda: f"{name}: {outcomes(folder)}\n{log_of(tmp_path)}"  # noqa: E731
        wait_for(lambda: (folder / name / "run/ranks/00001").is_file(), 600, why)
        return pid_of(folder / name / "run", rank=1)

    # a micro batch of 16 takes 0.6 GB more of a process than one of 1, which takes 0.5 (RLIMIT_DATA)
    clips = ["data.frames=14", "data.stride=1", "data.size=112", "deepspeed.config=null"]
    own = [
        one
        for one in overrides(tmp_path / "run", shards, 2)
        if not one.startswith(("run.dir", "train.micro", "train.global"))
    ]
    given = [
        "--config",
        "configs/pretrain_vitb.yaml",
        *own,
        "train.micro_batch_size=2",
        "train.global_batch_size=32",
        *clips,
    ]
    ways = ["--stages=0", "--offloads=none", "--micro-batches=1,16", "--steps=2", "--warm=0"]
    ends = ["--patience=200", "--limit=0.8", "--minutes=40"]
    job = cluster.submit("tune.sh", tmp_path, {"TGM_REQUEUE": "yes"}, "--dir", str(folder), *ways, *ends, *given)

    os.kill(started(HUNG), signal.SIGSTOP)
    os.kill(started(CRASHED), signal.SIGSEGV)
    pid = started(STOPPED)
    before = outcomes(folder)
    assert before == {FIRST: "ran", HUNG: "hung", LARGE: "out of memory", CRASHED: "failed"}, log_of(tmp_path)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.let_go(job, lambda: log_of(tmp_path), 200)
    assert not Path(f"/proc/{pid}").exists(), "a process of the trial is left"
    assert cluster.finish(job, 900) == "COMPLETED", log_of(tmp_path)
    after = {name: outcome for name, outcome in outcomes(folder).items() if "workers" not in name}
    assert after.pop(STOPPED) in ("ran", "out of memory"), log_of(tmp_path)
    assert after == before | {CRASHED: "failed ran"}, log_of(tmp_path)

    assert "2 processes on 2 nodes" in log_of(tmp_path) and "fastest that fits: " in log_of(tmp_path)
    [start] = run_folder.starts(folder / CRASHED / "run")
    assert start["slurm_nodes"] == "node[1-2]" and start["slurm_job"] == job
    best = (folder / "best.overrides").read_text().split()
    arguments = ["pretrain", *given, *best, f"run.dir={tmp_path / 'best'}"]
    cluster.run("srun", "--nodes=2", "--ntasks-per-node=1", sys.executable, "-m", "tgm_scale", *arguments, seconds=300)
    assert steps_of(tmp_path / "best") == 2
