"""Steps of the real engine on the device: every ZeRO stage in bf16, and AdamW that resumes from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import run

pytestmark = pytest.mark.gpu
WORKER = str(Path(__file__).with_name("steps_on_device.py"))
STEPS, SAVED = 6, 3
CELLS = [(stage, precision) for stage in range(4) for precision in ("fp32", "bf16")]


@pytest.fixture(scope="module")
def results(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Curves of all cells, of one process: stage 3 last, since it replaces torch's linear layer for good."""
    folder = tmp_path_factory.mktemp("steps")
    cases: dict[str, dict] = {}
    for stage, precision in CELLS:
        name = f"{stage} {precision}"
        common = {"model": "less", "stage": stage, "precision": precision, "steps": STEPS, "micro": 4}
        cases[name] = {**common, "save_at": SAVED, "save": str(folder / name)}
        cases[f"{name} again"] = {**common, "load": str(folder / name)}
    listing, out = folder / "cases.json", folder / "results.json"
    listing.write_text(json.dumps(cases))
    run(1, [WORKER, str(listing), str(out)])
    return json.loads(out.read_text())


@pytest.mark.parametrize(("stage", "precision"), CELLS)
def test_a_stage_learns_as_stage_0_does(results: dict[str, Any], stage: int, precision: str) -> None:
    curve, base = results[f"{stage} {precision}"]["curve"], results[f"0 {precision}"]["curve"]
    assert len(curve) == STEPS and curve[-1][0] < curve[0][0]
    for row, there in zip(curve, base, strict=True):
        assert row[:3] == pytest.approx(there[:3], rel=0, abs=1e-3 if precision == "fp32" else 3e-2)


@pytest.mark.parametrize(("stage", "precision"), CELLS)
def test_adam_goes_on_from_a_checkpoint(results: dict[str, Any], stage: int, precision: str) -> None:
    """The fused kernel wants its step count on the parameters' device, which a restored state must have, too."""
    curve, again = results[f"{stage} {precision}"]["curve"], results[f"{stage} {precision} again"]["curve"]
    assert len(again) == STEPS - SAVED
    for row, there in zip(again, curve[SAVED:], strict=True):
        assert row[:3] == pytest.approx(there[:3], rel=0, abs=1e-3 if precision == "fp32" else 3e-2)
