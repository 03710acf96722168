"""The planner's count of what layers keep is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tgm_scale import config as configuration
from tgm_scale.assembly.joint_module import JointModule, MaskSampling
from tgm_scale.assembly.objective import weights_of
from tgm_scale.assembly.parts import autoencoder, pixel_statistics
from tgm_scale.assembly.run_plan import plan_pretraining, run_masker
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.planning.activations import kept_bytes
from tgm_scale.planning.footprint import parameters, parameters_of
from tgm_scale.runtime.distributed import ProcessInfo

SMALL = [
    "data.repeated_augmentation=1",
    "train.micro_batch_size=1",
    "train.global_batch_size=1",
    "deepspeed.config=null",
]
SMALL += ["objective.contrastive_weight=0", "masking.recipe=tube", "guidance.towers=null"]


def kept_by_autograd(module: JointModule, *inputs: Any) -> int:
    """Bytes of the storages that a forward pass keeps, less those of weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(*inputs)
    assert output[0] is not None
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("way", ["self", "cross", "adamae", "automae"])
@pytest.mark.parametrize(("size", "pixels", "within"), [("tiny", 64, 0.03), ("S", 112, 0.02)])
def test_what_is_kept_is_what_autograd_keeps(
    size: str, pixels: int, within: float, way: str, checkpointing: bool, precision: str
) -> None:
    recipe, decoder = (way, "self") if way.endswith("mae") else ("tube", way)
    frames = 8
    clips = [f"data.frames={frames}", f"data.size={pixels}", f"model.size={size}", f"train.precision={precision}"]
    ways = [
        f"model.activation_checkpointing={str(checkpointing).lower()}",
        f"model.decoder_attention={decoder}",
        f"masking.recipe={recipe}",
        f"guidance.towers={'small' if way == 'automae' else 'null'}",
    ]
    config = configuration.load("configs/pretrain_vitb.yaml", [*SMALL, *clips, *ways])
    plan = plan_pretraining(config, ProcessInfo(0, 1, 0, torch.device("cpu")))
    model = autoencoder(plan.shape, config.model, 0, None, pixel_statistics(config.data))
    masker, seeds = run_masker(config), torch.zeros(1, dtype=torch.int64)
    weights = weights_of(config.objective, masker)
    module = JointModule(model, Objective.of(weights, TermSettings(model.size)), 0, masker, plan.heads).to(
        torch.bfloat16 if precision == "bf16" else torch.float32
    )
    video = torch.zeros(1, 3, frames, pixels, pixels, dtype=torch.uint8)
    grid = plan.shape.grid
    heads = torch.ones(1, plan.heads, grid.slots, grid.rows, grid.columns) if plan.heads else None
    assert (plan.heads == 4) == (way == "automae"), "the packaged tower's"
    assert parameters_of(plan) - parameters(plan.shape) == sum(p.numel() for p in module.masks.parameters())
    sampling = MaskSampling(seeds, heads)
    mask = module.draw(video, sampling) if masker.learned else masker(seeds)
    inputs = (video, mask.visible, mask.target, None, False, sampling)
    found, counted = kept_by_autograd(module, *inputs), kept_bytes(plan, checkpointing)
    assert counted == pytest.approx(found, rel=within)
