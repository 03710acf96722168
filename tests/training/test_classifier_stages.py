"""Finetuning's classifier with drop path on real engines of two processes: ZeRO-3, checkpointing, compiled blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from classifier_worker import AVERAGED, CASES
from launch import run


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    out = tmp_path_factory.mktemp("classifier") / "curves.json"
    run(2, [str(Path(__file__).with_name("classifier_worker.py")), str(out)])
    return json.loads(out.read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_curve_is_that_of_stage_0(curves: dict[str, list[float]], case: str) -> None:
    _, precision, _ = CASES[case]
    tolerance = 1e-4 if precision == "fp32" else 3e-2
    assert curves[case] == pytest.approx(curves[f"stage 0, {precision}, plain"], abs=tolerance)
    assert curves[case][-1] < curves[case][0]


@pytest.mark.parametrize(("stage", "precision"), AVERAGED)
def test_the_average_is_of_the_fp32_weights(curves: dict[str, list[float]], stage: int, precision: str) -> None:
    assert curves[f"average, stage {stage}, {precision}"][0] < 1e-7
