"""DeepSpeed's engine neither waits for the device at each pass, nor ends a wait before the run's own patience does;
and its Adam on the host has the cores that the launcher's OMP_NUM_THREADS=1 keeps from it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from glue_worker import PATIENCE
from launch import run

from tgm_scale.runtime.processes import own_cores

WORKER = str(Path(__file__).with_name("glue_worker.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    out = tmp_path_factory.mktemp("glue") / "found.json"
    run(1, [WORKER, str(out)], seconds=600)  # it builds Adam for CPUs where nobody has
    return json.loads(out.read_text())


def test_no_pass_waits_for_all_that_the_device_was_given(found: dict[str, list]) -> None:
    """With DeepSpeed's throughput timer on, 12 in these four steps at every stage: 2 of a pass and a step each."""
    assert found["waits"] == [0, 0, 0, 0], "ZeRO 1, 2, 3 in bf16; 0 in fp32"


def test_collectives_of_deepspeed_have_the_patience_of_the_run(found: dict[str, list]) -> None:
    """By itself it would take the backend's timeout: NCCL's is 10 minutes, gloo's 30."""
    assert found["timeouts"] == [PATIENCE, PATIENCE]


def test_adam_on_the_host_has_the_cores_that_are_free_and_nothing_else_has(found: dict[str, list]) -> None:
    assert found["one"] == [1, 1, 1] and found["several"] == [3, 3, 1], "of two groups of parameters; and afterwards"


@pytest.mark.parametrize(
    ("variables", "cores"),
    [
        ({}, 8),
        ({"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "4"}, 4),
        ({"SLURM_CPUS_PER_TASK": "4"}, 8),
        ({"LOCAL_WORLD_SIZE": "4"}, 2),
        ({"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "96", "LOCAL_WORLD_SIZE": "4"}, 2),
        ({"LOCAL_WORLD_SIZE": "64"}, 1),
    ],
)
def test_cores_of_a_process(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], cores: int) -> None:
    for name in ("SLURM_STEP_ID", "SLURM_CPUS_PER_TASK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert own_cores() == cores
