"""Every ZeRO stage x precision x accumulation x offload, on two processes of one group: one curve, exact resume."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from launch import answers

WORKER = str(Path(__file__).with_name("step_worker.py"))
STEPS, SAVED = 6, 4
CPU = {"device": "cpu", "pin_memory": True}
BOTH = {"offload_optimizer": CPU, "offload_param": CPU}
# as configs/deepspeed/zero3_offload_small.json, below the size of the model's largest weights
SMALL = {"sub_group_size": 10000, "reduce_bucket_size": 3000, "stage3_max_live_parameters": 3000}
OFFLOADS: dict[str, dict] = {
    "none": {},
    "optimizer": {"offload_optimizer": CPU},
    "optimizer and parameters": BOTH,
    "both, in small pieces": {**BOTH, **SMALL, "stage3_prefetch_bucket_size": 0, "stage3_max_reuse_distance": 0},
}
LOWEST_STAGE = {"none": 0, "optimizer": 1, "optimizer and parameters": 3, "both, in small pieces": 3}


def cells() -> list[tuple[int, str, int, str]]:
    """(stage, precision, accumulation, offload). Stage 3 last: it replaces torch's linear for the whole process by one
    that rounds differently, and what goes on to the last bit must begin under the same one."""
    found = []
    for stage, offload, precision, accumulation in itertools.product(range(4), OFFLOADS, ("fp32", "bf16"), (1, 2)):
        whole = precision == "fp32" and offload != "both, in small pieces"  # bf16 is slow on most CPUs
        if stage >= LOWEST_STAGE[offload] and (accumulation == 2 or whole):
            found.append((stage, precision, accumulation, offload))
    return found


def name_of(cell: tuple[int, str, int, str]) -> str:
    stage, precision, accumulation, offload = cell
    return f"stage {stage}, {precision}, {accumulation} micro steps, offload {offload}"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("matrix")
    cases = {}
    for cell in cells():
        stage, precision, accumulation, offload = cell
        name = name_of(cell)
        file = folder / f"{offload}.json"
        file.write_text(json.dumps({"zero_optimization": OFFLOADS[offload]}))
        common = {"model": "less", "stage": stage, "precision": precision, "steps": STEPS, "json": str(file)}
        common["micro"] = 4 // accumulation
        # half of the cells write their checkpoint as where memory is short
        streamed = accumulation == 2 if precision == "fp32" else stage % 2 == 1
        cases[name] = {**common, "save_at": SAVED, "save": str(folder / name), "streamed": streamed}
        cases[f"{name}, again"] = {**common, "load": str(folder / name)}
    return answers(WORKER, folder, 2, cases, seconds=900)  # the first start builds DeepSpeed's Adam for CPUs


@pytest.mark.parametrize("cell", cells(), ids=name_of)
def test_a_cell(results: dict[str, dict], cell: tuple[int, str, int, str]) -> None:
    _, precision, _, _ = cell
    base = results[name_of((0, precision, 1 if precision == "fp32" else 2, "none"))]["curve"]
    found, again = results[name_of(cell)], results[f"{name_of(cell)}, again"]
    assert len(found["curve"]) == STEPS and found["curve"][-1][0] < found["curve"][0][0]
    for row, there in zip(found["curve"], base, strict=True):
        assert row[:3] == pytest.approx(there[:3], rel=0, abs=1e-5 if precision == "fp32" else 2e-2)
        assert row[3] == pytest.approx(there[3], rel=1e-5 if precision == "fp32" else 5e-2)
    assert found["saved_is_live"], "the consolidated weights are those that the module computes with"
    assert again["curve"] == found["curve"][SAVED:]
    assert again["state"] == found["state"]
