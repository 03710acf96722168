"""DeepSpeed's engine neither waits for the device at each pass, nor ends a wait before the run's own patience does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from glue_worker import PATIENCE
from launch import run

WORKER = str(Path(__file__).with_name("glue_worker.py"))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    out = tmp_path_factory.mktemp("glue") / "found.json"
    run(1, [WORKER, str(out)])
    return json.loads(out.read_text())


def test_no_pass_waits_for_all_that_the_device_was_given(found: dict[str, list]) -> None:
    """With DeepSpeed's throughput timer on, 12 in these four steps at every stage: 2 of a pass and a step each."""
    assert found["waits"] == [0, 0, 0, 0], "ZeRO 1, 2, 3 in bf16; 0 in fp32"


def test_collectives_of_deepspeed_have_the_patience_of_the_run(found: dict[str, list]) -> None:
    """By itself it would take the backend's timeout: NCCL's is 10 minutes, gloo's 30."""
    assert found["timeouts"] == [PATIENCE, PATIENCE]
