"""What a step reports is what it used."""

from __future__ import annotations

import math

import pytest
import torch

from tgm_scale.contracts import Batch
from tgm_scale.models.vit import SIZES
from tgm_scale.objectives.contrastive import MAX_SCALE, MIN_SCALE, InfoNCE, info_nce
from tgm_scale.objectives.negatives import Negatives
from tgm_scale.objectives.term import TermSettings
from tgm_scale.runtime.distributed import find_process
from tgm_scale.training.grad_cache import EmbeddedBatch, GradCache


@pytest.mark.parametrize("log_scale", [-1.0, math.log(1 / 0.07), math.log(MAX_SCALE) + 0.5])
def test_the_temperature_reported_is_the_one_of_the_loss(log_scale: float) -> None:
    learnt, ids = torch.tensor([log_scale]), torch.arange(4)
    scale = info_nce(torch.eye(4), torch.eye(4), learnt, Negatives(torch.ones(4), ids, ids, 4)).scale.item()
    term = InfoNCE(TermSettings(SIZES["tiny"]))
    cache = GradCache({"contrast": term}, find_process(), 1, 4, 4.0)
    video, crops = torch.zeros(4, 3, 2, 8, 8, dtype=torch.uint8), torch.zeros(4, 5)
    batch = Batch(video, [""] * 4, [""] * 4, ids, torch.ones(4), ids, crops, torch.zeros(4))
    cache.add([EmbeddedBatch(batch, torch.eye(4), torch.eye(4), ids)], {"contrast": learnt})
    temperature = cache.metrics({"contrast": learnt})["temperature"].item()
    assert temperature == pytest.approx(1 / scale)
    assert 0.99 / MAX_SCALE < temperature <= 1 / MIN_SCALE
