"""How far DeepSpeed's sum of bf16 gradients is from the fp32 one: `torchrun ... sum_worker.py OUT`; test_sums.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from step_worker import FRAMES, MODELS, SIZE, WIDTH, prepared
from torch import Tensor
from worker import answer

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.runtime.distributed import ProcessInfo

MICRO_STEPS = 64


def difference(stage: int, process: ProcessInfo) -> float:
    """The largest over the parameters of |sum - fp32 sum| / |fp32 sum|, after MICRO_STEPS micro steps of a clip."""
    from deepspeed.utils import safe_get_full_grad

    model = MaskedVideoAutoencoder(MODELS["less"], frames=FRAMES, image_size=SIZE, embedding_width=WIDTH, seed=0)
    ranks = process.world_size
    plan = EnginePlan(
        stage, None, BatchLayout(MICRO_STEPS * ranks, 1, process.rank, ranks), "bf16", 1.0, 0.05, (0.9, 0.95)
    )
    objective = Objective.of({"pixels": 1.0, "contrast": 1.0}, TermSettings(model.size))
    ds_engine = engine.build_engine(JointModule(model, objective), plan, process.device)
    sums: dict[str, Tensor] = {}

    def add(name: str, gradient: Tensor) -> None:
        sums[name] = sums.get(name, torch.zeros(gradient.shape)) + gradient.float() / ranks

    for name, parameter in engine_state.named_parameters(ds_engine):
        parameter.register_hook(lambda gradient, name=name: add(name, gradient))
    for index in range(MICRO_STEPS):
        part = prepared([index * ranks + process.rank], model.grid.tokens)
        error, embedding, [log_scale], *_ = ds_engine(part.batch.video, part.mask.visible, part.mask.target)
        ds_engine.backward(error.sum() + embedding.sum() + log_scale.sum())
        if index < MICRO_STEPS - 1:
            ds_engine.step()
    worst = 0.0
    for name, parameter in engine_state.named_parameters(ds_engine):
        found = parameter.grad if stage == 0 else safe_get_full_grad(parameter)
        if ranks > 1:
            dist.all_reduce(sums[name])
        apart = (found.float() - sums[name]).norm() / sums[name].norm()
        worst = max(worst, float(apart))
    return worst


if __name__ == "__main__":
    answer(lambda process: {str(stage): difference(stage, process) for stage in range(4)}, sys.argv[1])
