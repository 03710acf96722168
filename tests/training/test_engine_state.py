"""What DeepSpeed leaves undone around the state, held on real engines of two processes: an upgrade that changes it, in
either direction, fails here by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import run

WORKER = str(Path(__file__).with_name("state_worker.py"))
CASES = [f"{stage} {precision}" for stage in range(4) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    out = tmp_path_factory.mktemp("state") / "results.json"
    run(2, [WORKER, str(out)])
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_state_is_there_before_the_first_step(results: dict[str, dict], case: str) -> None:
    assert results[case]["groups"] == 2, "one group would hide the gaps"
    assert results[case]["moments are zero before the first step"]


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_read_and_computed_with(results: dict[str, dict], case: str) -> None:
    assert results[case]["reads what was written"]
    assert results[case]["computes with what was written"]


@pytest.mark.parametrize("case", [case for case in CASES if case[0] in "12"])
def test_a_rank_reads_what_it_has_a_part_of(results: dict[str, dict], case: str) -> None:
    # each group is cut in two at one place: the parameters on the other side of it are never asked for
    assert results[case]["names read"] < 0.8 * results[case]["names"]


@pytest.mark.parametrize("case", CASES)
def test_every_moment_counts_its_own_steps(results: dict[str, dict], case: str) -> None:
    # a step tensor shared by the groups would be counted up once for each
    assert results[case]["global step"] == 7
    assert results[case]["steps"] == [5] and results[case]["steps after one more"] == [6]


@pytest.mark.parametrize("stage", ["1", "2", "3"])
def test_deepspeed_still_leaves_the_working_weights_alone(results: dict[str, dict], stage: str) -> None:
    assert results["left alone"][stage], "engine_state._refresh_working_weights may be needless now"
