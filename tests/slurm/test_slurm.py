"""`sbatch slurm/pretrain_vitb.sh` on a cluster: trains, survives signals, kills and bad nodes, and ends crash loops.

One undisturbed run, and disturbed ones that must end with its curve to the last bit.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from simulated import Cluster, log_of, overrides, pid_of, steps_of, wait_for

from tgm_scale.runs import run_folder
from tgm_scale.runs.compare import compare
from tgm_scale.runs.status import status
from tgm_scale.runtime.launch import node_names

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

STEPS = 40


@pytest.fixture(autouse=True)
def cleared(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that the others are compared with. As a chain: its next job must vanish, since it is not needed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run = folder / "run"
    job = cluster.submit("pretrain_vitb.sh", folder, {"TGM_REQUEUE": "chain"}, *overrides(run, shards, STEPS))
    assert cluster.finish(job) == "COMPLETED", log_of(folder)
    return run


def assert_equal(run: Path, undisturbed: Path) -> None:
    report, equal = compare(str(run), str(undisturbed))
    assert equal and f"{STEPS} steps" in report, report


def test_two_nodes_train_under_deepspeed(undisturbed: Path, cluster: Cluster) -> None:
    assert steps_of(undisturbed) == STEPS
    [start] = run_folder.starts(undisturbed)
    assert start["slurm_nodes"] == "node[1-2]" and start["step"] == 0 and start["restart"] == "0"
    assert run_folder.read_plan(undisturbed)["world_size"] == 2
    logs = sorted(file.name for file in (undisturbed / "logs" / f"{start['slurm_job']}.0").iterdir())
    assert logs == ["preflight.log", "rank-0000.log", "rank-0001.log"]
    log = log_of(undisturbed.parent)
    assert "processes: 2 on CPU, nodes: 2" in log and "all-reduce" in log
    assert "continues the run if this job ends first" in log
    wait_for(lambda: not cluster.run("squeue", "--noheader"), 30, lambda: cluster.run("squeue"))


def test_a_signalled_run_leaves_a_bad_node_and_goes_on_as_if_undisturbed(
    cluster: Cluster, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cluster.spoil("node2")
    facts = {"TGM_REQUEUE": "yes", "TGM_EXCLUDE_BAD_NODES": "yes"}
    job = cluster.submit("pretrain_vitb.sh", tmp_path, facts, *overrides(run, shards, STEPS))
    wait_for(lambda: cluster.fact(job, "ExcNodeList") == "node2", 200, lambda: log_of(tmp_path))
    assert "bad node node2: numpy is 0.1, elsewhere" in log_of(tmp_path)
    cluster.let_go(job, lambda: log_of(tmp_path))

    wait_for(lambda: steps_of(run) >= 12, 200, lambda: log_of(tmp_path))
    cluster.run("scancel", "--signal=USR1", job)
    cluster.let_go(job, lambda: log_of(tmp_path))
    assert cluster.finish(job) == "COMPLETED", log_of(tmp_path)

    first, second = run_folder.starts(run)
    stopped_at = second["step"]
    assert first["slurm_job"] == second["slurm_job"] == job
    assert node_names(first["slurm_nodes"]) == node_names(second["slurm_nodes"]) == ["node1", "node3"]
    assert first["step"] == 0 and 12 <= stopped_at < STEPS
    assert (first["restart"], second["restart"]) == ("1", "2")
    assert f"pretrain ended with exit code 85 at step {stopped_at}" in log_of(tmp_path)
    assert_equal(run, undisturbed)
    assert f"2, at steps 0, {stopped_at}; jobs {job}; now on node[1,3]" in status(str(run))


def test_a_killed_task_ends_the_job_and_the_requeue_finishes_it(
    cluster: Cluster, shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    facts = {"TGM_REQUEUE": "yes", "TGM_SRUN_OPTIONS": "(--wait=5)"}  # the launcher's own is 30
    job = cluster.submit("pretrain_vitb.sh", tmp_path, facts, *overrides(run, shards, STEPS))
    wait_for(lambda: steps_of(run) >= 14, 200, lambda: log_of(tmp_path))
    os.kill(pid_of(run, rank=1), signal.SIGSTOP)  # else the run may be done before the second job is looked at
    second_job = cluster.submit(
        "pretrain_vitb.sh", tmp_path, {}, *overrides(run, shards, STEPS), options=("--nodes=1",)
    )
    assert cluster.finish(second_job) == "FAILED" and f"job {job} is at work there" in log_of(tmp_path)
    os.kill(pid_of(run, rank=1), signal.SIGKILL)
    assert cluster.let_go(job, lambda: log_of(tmp_path)) < 60
    assert cluster.finish(job) == "COMPLETED", log_of(tmp_path)
    first, second = run_folder.starts(run)
    assert first["step"] == 0 and second["step"] in (10, 20, 30)
    assert_equal(run, undisturbed)


def test_a_users_mistake_is_told_and_not_started_again(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    wrong = [*overrides(tmp_path / "run", shards, STEPS), "train.stepps=3"]
    job = cluster.submit("pretrain_vitb.sh", tmp_path, {"TGM_REQUEUE": "yes"}, *wrong)
    assert cluster.finish(job) == "FAILED"
    assert "train.stepps: unknown key; did you mean train.steps?" in log_of(tmp_path)
    assert cluster.fact(job, "ExitCode") == "2:0" and cluster.fact(job, "Restarts") == "0"


def test_a_run_that_diverges_is_not_started_again(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    # the first loss above the median of those before is a spike that ends the run
    spikes = ["faults.spike_factor=1.0001", "faults.refused_before_rollback=1", "faults.rollbacks=0"]
    wild = [*overrides(tmp_path / "run", shards, STEPS), *spikes, "train.steps=400", "optim.base_lr=30"]
    wild.append("data.max_skipped_share=1")
    job = cluster.submit("pretrain_vitb.sh", tmp_path, {"TGM_REQUEUE": "yes"}, *wild, options=("--nodes=1",))
    assert cluster.finish(job) == "FAILED"
    assert "updates were refused up to step" in log_of(tmp_path) and "not started again" in log_of(tmp_path)
    assert cluster.fact(job, "ExitCode") == "4:0" and cluster.fact(job, "Restarts") == "0"


def test_srun_alone_is_enough(cluster: Cluster, shards: Path, tmp_path: Path) -> None:
    """No launcher: ranks, and the first node's address and port, come from the variables of SLURM."""
    command = [sys.executable, "-m", "tgm_scale", "preflight", "--config", "configs/pretrain_vitb.yaml"]
    size = ("--nodes=3", "--ntasks-per-node=1")
    said = cluster.run(
        "srun", *size, *command, *overrides(tmp_path / "run", shards, STEPS), "train.global_batch_size=24"
    )
    assert "processes: 3 on CPU, nodes: 3" in said


@pytest.mark.parametrize("nodelist", ["node1", "gpu[08-11,13],login1", "a[1-2]b[3,5]", "rack-[098-101]"])
def test_node_lists_are_read_as_slurm_reads_them(cluster: Cluster, nodelist: str) -> None:
    assert node_names(nodelist) == cluster.run("scontrol", "show", "hostnames", nodelist).split()
