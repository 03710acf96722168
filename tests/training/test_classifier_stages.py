"""Finetuning's classifier with drop path on real engines of two processes: ZeRO-3, checkpointing, compiled blocks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from classifier_worker import AVERAGED, CASES, CLIPS, SIZE, STEPS, UNUSABLE, clip
from launch import run

from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.vit import ModelOptions


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
    assert curves[f"average, stage {stage}, {precision}"][0] < 3e-7


@pytest.mark.parametrize(("case", "tolerance"), [("0, fp32", 1e-5), ("3, fp32", 1e-4), ("1, bf16", 3e-2)])
def test_the_norm_before_the_head_is_torchs_over_the_global_batch(
    curves: dict[str, list[float]], case: str, tolerance: float
) -> None:
    """Two processes and two micro steps of one clip each, against BatchNorm over those clips that have weight."""
    model = VideoClassifier(SIZE, 4, 32, classes=5, options=ModelOptions(drop_path=0.3), seed=0).train()
    norm = torch.nn.BatchNorm1d(SIZE.width, eps=1e-6, affine=False)
    used = torch.tensor([number for number in range(CLIPS) if number != UNUSABLE])
    video = torch.stack([clip(int(number)) for number in used])
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05)
    losses = []
    for step in range(STEPS):
        loss = F.cross_entropy(model.head(norm(model.features(video, used + CLIPS * step))), used)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert curves[f"normed, stage {case}"] == pytest.approx(losses, abs=tolerance)
    assert losses[-1] < losses[0]
