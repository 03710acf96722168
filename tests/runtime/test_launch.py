"""Who this process is by the launcher's variables; what is half set, out of range or contradictory is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from tgm_scale.runtime import launch
from tgm_scale.runtime.distributed import ProcessInfo, choose_device, refuse_hidden_gpus, set_rendezvous
from tgm_scale.runtime.launch import tasks_of_this_node


def variables(text: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in text.split())


TORCHRUN = "RANK=3 WORLD_SIZE=4 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2"
SRUN = "SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_NTASKS=4 SLURM_LOCALID=1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", (0, 1, 0, 1)),
        ("SLURM_PROCID=0 SLURM_NTASKS=4", (0, 1, 0, 1)),  # in a batch script, beside srun
        ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1", (0, 1, 0, 1)),  # a shell of salloc
        ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0", (0, 1, 0, 1)),
        ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_NTASKS=8 SLURM_LOCALID=0 " + TORCHRUN, (3, 4, 1, 2)),
        ("RANK=0 WORLD_SIZE=1", (0, 1, 0, None)),
        (TORCHRUN, (3, 4, 1, 2)),
        (f"{SRUN} SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_NODEID=1", (3, 4, 1, 2)),
        (SRUN, (3, 4, 1, None)),
        (f"{SRUN} RANK=3 WORLD_SIZE=4 LOCAL_RANK=1", (3, 4, 1, None)),  # a script that translates srun's
        (
            f"SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_NTASKS=2 SLURM_LOCALID=0 TORCHELASTIC_RUN_ID=x {TORCHRUN}",
            (3, 4, 1, 2),
        ),
    ],
)
def test_a_place_is_read(text: str, expected: tuple) -> None:
    found = launch.read(variables(text))
    assert (found.rank, found.world_size, found.local_rank, found.local_size) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("RANK=0", "RANK=0 WORLD_SIZE LOCAL_RANK"),
        ("WORLD_SIZE=4", "WORLD_SIZE=4 RANK LOCAL_RANK"),
        ("LOCAL_RANK=0", "LOCAL_RANK=0 RANK WORLD_SIZE"),
        ("RANK=0 WORLD_SIZE=2", "WORLD_SIZE=2 LOCAL_RANK"),
        ("RANK=0 WORLD_SIZE=0", "WORLD_SIZE=0"),
        ("RANK=0 WORLD_SIZE=0 LOCAL_RANK=0", "RANK=0, WORLD_SIZE=0"),
        ("RANK=0 WORLD_SIZE=-1 LOCAL_RANK=0", "WORLD_SIZE=-1"),
        ("RANK=4 WORLD_SIZE=4 LOCAL_RANK=0", "RANK=4 WORLD_SIZE=4"),
        ("RANK=-1 WORLD_SIZE=4 LOCAL_RANK=0", "RANK=-1"),
        ("RANK=0 WORLD_SIZE=4 LOCAL_RANK=-1", "LOCAL_RANK=-1"),
        ("RANK=0 WORLD_SIZE=4 LOCAL_RANK=9", "LOCAL_RANK=9"),
        ("RANK=0 WORLD_SIZE=8 LOCAL_RANK=2 LOCAL_WORLD_SIZE=2", "LOCAL_RANK=2 2 processes"),
        ("RANK=zero WORLD_SIZE=4 LOCAL_RANK=0", "RANK='zero' number"),
        ("RANK= WORLD_SIZE=4 LOCAL_RANK=0", "RANK='' number"),
        ("RANK=0 WORLD_SIZE=2.0 LOCAL_RANK=0", "WORLD_SIZE='2.0' number"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 LOCAL_WORLD_SIZE=x", "LOCAL_WORLD_SIZE='x' number"),
        ("SLURM_STEP_ID=x", "SLURM_STEP_ID='x' number"),
        ("SLURM_STEP_ID=0", "SLURM_STEP_ID SLURM_PROCID SLURM_NTASKS SLURM_LOCALID"),
        ("SLURM_STEP_ID=0 SLURM_PROCID=1 SLURM_NTASKS=4", "SLURM_PROCID=1 SLURM_LOCALID"),
        ("SLURM_STEP_ID=0 SLURM_PROCID=4 SLURM_NTASKS=4 SLURM_LOCALID=0", "SLURM_PROCID=4 SLURM_NTASKS=4"),
        ("SLURM_PROCID=1 SLURM_NTASKS=4", "SLURM_PROCID=1 SLURM_STEP_ID"),
        (f"{SRUN} RANK=0 WORLD_SIZE=1 LOCAL_RANK=0", "RANK=0 WORLD_SIZE=1 task 3 of 4"),
        ("OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4 mpirun torchrun"),
    ],
)
def test_variables_that_make_no_sense_are_refused_by_name(text: str, names: str) -> None:
    with pytest.raises(ValueError, match=r"unset|start with") as refused:
        launch.read(variables(text))
    assert [name for name in names.split() if name not in str(refused.value)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MASTER_PORT=29500", "no SLURM_JOB_NODELIST"),
        ("MASTER_ADDR=127.0.0.1", "without MASTER_PORT"),
        ("MASTER_ADDR=127.0.0.1 MASTER_PORT=http", "MASTER_PORT='http'"),
        ("MASTER_ADDR=127.0.0.1 MASTER_PORT=99999", "MASTER_PORT=99999"),
        ("MASTER_ADDR=127.0.0.1 SLURM_JOB_ID=a", "SLURM_JOB_ID='a'"),
        ("MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 GLOO_SOCKET_IFNAME=none9", "no 'none9'; it has: lo"),
    ],
)
def test_where_rank_0_is_must_be_told(text: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {**variables(TORCHRUN), **variables(text)})
    with pytest.raises(ValueError, match=expected):
        set_rendezvous(ProcessInfo(3, 4, 1, torch.device("cpu")))


def test_a_run_of_one_process_takes_no_address_of_another_start(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = variables("MASTER_ADDR=far.example MASTER_PORT=1")
    monkeypatch.setattr(os, "environ", environment)
    set_rendezvous(ProcessInfo(0, 1, 0, torch.device("cpu")))
    assert environment["MASTER_ADDR"] == "127.0.0.1" and environment["MASTER_PORT"] != "1"


def test_deepspeed_is_told_the_device_and_not_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a task that sees one GPU, its own."""
    environment = variables(f"{TORCHRUN} MASTER_ADDR=127.0.0.1 MASTER_PORT=29500")
    monkeypatch.setattr(os, "environ", environment)
    set_rendezvous(ProcessInfo(3, 4, 1, torch.device("cuda", 0)))
    assert environment["LOCAL_RANK"] == "0" and environment["GLOO_SOCKET_IFNAME"] == "lo"


def test_a_process_takes_the_gpu_that_it_is_given() -> None:
    assert choose_device(0, 1, 0) is None and choose_device(3, 4, 0) is None
    assert choose_device(3, 4, 1) == 0, "srun --gpus-per-task=1: each task sees its own"
    assert [choose_device(rank, 4, 8) for rank in range(4)] == [0, 1, 2, 3]
    assert choose_device(3, None, 4) == 3
    for local_rank, local_size, visible in ((0, 4, 2), (3, 4, 3), (5, None, 4)):
        with pytest.raises(ValueError, match=rf"LOCAL_RANK={local_rank}\) and {visible} GPUs .*CUDA_VISIBLE_DEVICES"):
            choose_device(local_rank, local_size, visible)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4(x2),3 0", 4), ("4(x2),3 2", 3), ("4(x2),3 3", None), ("8 ", 8), ("2,2 ", None), (" 0", None)],
)
def test_tasks_of_a_node(text: str, expected: int | None) -> None:
    tasks, _, node = text.partition(" ")
    env = {"SLURM_STEP_TASKS_PER_NODE": tasks} | ({"SLURM_NODEID": node} if node else {})
    assert tasks_of_this_node(env) == expected


def test_gpus_that_torch_does_not_see_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    on_cpu, job = ProcessInfo(0, 1, 0, torch.device("cpu")), {"SLURM_JOB_ID": "7"}
    monkeypatch.setattr(os, "environ", {**job, "SLURM_JOB_GPUS": "0,3"})
    with pytest.raises(ValueError, match=r"SLURM_JOB_GPUS=0,3.*sees no GPU.*--nv.*CUDA_VISIBLE_DEVICES to nothing"):
        refuse_hidden_gpus(on_cpu)
    refuse_hidden_gpus(ProcessInfo(0, 1, 0, torch.device("cuda", 0)))
    for chosen in (job, {"SLURM_JOB_GPUS": "0", "CUDA_VISIBLE_DEVICES": ""}):
        monkeypatch.setattr(os, "environ", chosen)
        refuse_hidden_gpus(on_cpu)


def test_a_command_ends_with_2_and_the_variables() -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tgm_scale", "knn"),
            *("run.dir=never/made", "encoder.checkpoint=x", "data.train=y", "data.test=y"),
        ],
        env={**env, "WORLD_SIZE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "WORLD_SIZE=0: without RANK" in done.stderr, done.stderr
