"""Reads and writes engine state around DeepSpeed's gaps: `torchrun ... state_worker.py OUT`; test_engine_state.py."""

from __future__ import annotations

import sys
from typing import Any

import torch
from step_worker import MODELS, live_weights
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
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import ProcessInfo

STEP, UPDATES = 7, 5
CASES = [(stage, precision) for stage in (0, 1, 2, 3) for precision in ("fp32", "bf16")]


def build(stage: int, precision: str, process: ProcessInfo) -> Any:
    model = MaskedVideoAutoencoder(MODELS["less"], frames=4, image_size=32, embedding_width=16, seed=0)
    plan = EnginePlan(
        stage, None, BatchLayout(4, 2, process.rank, process.world_size), precision, 1.0, 0.05, (0.9, 0.95)
    )
    objective = Objective.of({"pixels": 1.0, "contrast": 1.0}, TermSettings(model.size))
    return engine.build_engine(JointModule(model, objective), plan, process.device)


def made(name: str, part: str, shape: torch.Size) -> Tensor:
    value = torch.randn(shape, generator=seeding.generator("state", name, part))
    return value.abs() if part == "exp_avg_sq" else value


def one_step(ds_engine: Any) -> None:
    video = torch.randint(0, 255, (2, 3, 4, 32, 32), generator=seeding.generator("clip"), dtype=torch.uint8)
    visible, target = torch.arange(4).repeat(2, 1), torch.arange(4, 10).repeat(2, 1)
    error, embedding, [log_scale], *_ = ds_engine(video, visible, target)
    ds_engine.backward(error.sum() + embedding.sum() + log_scale.sum())
    ds_engine.step()


def adam_steps(ds_engine: Any) -> list[float]:
    return [float(state["step"]) for state in engine_state.adam(ds_engine).state.values() if "step" in state]


def run_case(stage: int, precision: str, process: ProcessInfo) -> dict[str, Any]:
    found: dict[str, Any] = {}
    ds_engine = build(stage, precision, process)
    fresh = dict(engine_state.read(ds_engine))
    moments = [parts[part] for parts in fresh.values() for part in ("exp_avg", "exp_avg_sq")]
    found["moments are zero before the first step"] = not any(bool(moment.any()) for moment in moments)
    shapes = {name: parts["weight"].shape for name, parts in fresh.items()}

    asked: set[str] = set()

    def stored(name: str, part: str) -> Tensor:
        asked.add(name)
        return made(name, part, shapes[name])

    engine_state.write(ds_engine, STEP, UPDATES, stored)
    found["names"], found["names read"] = len(shapes), len(asked)
    found["groups"] = len(ds_engine.optimizer.param_groups)
    found["reads what was written"] = all(
        torch.equal(tensor, made(name, part, shapes[name]))
        for name, parts in engine_state.read(ds_engine)
        for part, tensor in parts.items()
    )
    found["computes with what was written"] = all(
        torch.equal(value, made(name, "weight", shapes[name]).to(value.dtype))
        for name, value in live_weights(ds_engine).items()
    )
    found["global step"] = ds_engine.global_steps
    found["steps"] = sorted(set(adam_steps(ds_engine)))
    one_step(ds_engine)
    found["steps after one more"] = sorted(set(adam_steps(ds_engine)))
    return found


def left_alone(stage: int, process: ProcessInfo) -> bool:
    """Whether DeepSpeed's own call for setting a weight still leaves the weight that the module computes with."""
    from deepspeed import utils

    ds_engine = build(stage, "bf16", process)
    for _, parameter in engine_state.named_parameters(ds_engine):
        if hasattr(parameter, "ds_tensor"):
            part = torch.full((parameter.ds_tensor.numel(),), 3.0)
            utils.safe_set_local_fp32_param(parameter, part)
        else:
            utils.safe_set_full_fp32_param(parameter, torch.full(parameter.shape, 3.0))
    return not any(bool((value == 3.0).all()) for value in live_weights(ds_engine).values())


def results(process: ProcessInfo) -> dict[str, Any]:
    found: dict[str, Any] = {f"{stage} {precision}": run_case(stage, precision, process) for stage, precision in CASES}
    return found | {"left alone": {str(stage): left_alone(stage, process) for stage in (1, 2, 3)}}


if __name__ == "__main__":
    answer(results, sys.argv[1])
