"""What a step reports is what it used."""

from __future__ import annotations

import math

import pytest
import torch

from tgm_scale.contracts import BatchLayout
from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.contrastive import MAX_SCALE, MIN_SCALE, info_nce
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import Setup
from tgm_scale.objectives.terms import Objective
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training.step import JointStep, _Replay


@pytest.mark.parametrize("log_scale", [-1.0, math.log(1 / 0.07), math.log(MAX_SCALE) + 0.5])
def test_the_temperature_reported_is_the_one_of_the_loss(log_scale: float) -> None:
    learnt, ids = torch.tensor([log_scale]), torch.arange(4)
    contrast = info_nce(torch.eye(4), torch.eye(4), learnt, Negatives(torch.ones(4), ids, ids, 4))
    objective = Objective.of({"pixels": 1.0, "contrast": 1.0}, Setup(SIZES["tiny"]))
    step = JointStep(None, find_process(), BatchLayout(4, 4), objective)
    digest = torch.zeros((), dtype=torch.float64)
    replay = _Replay(torch.zeros(4, 4), torch.zeros(1), contrast.loss, {"contrastive_accuracy": contrast.accuracy})
    errors_T = torch.zeros(1, dtype=torch.float64)
    metrics = step._metrics(errors_T, digest, [{"contrast": replay}], {"contrast": learnt})
    temperature = metrics["temperature"].item()
    assert temperature == pytest.approx(1 / contrast.scale.item())
    assert 0.99 / MAX_SCALE < temperature <= 1 / MIN_SCALE
