"""Which share of a step's layers ZeRO-3 can fetch ahead, because the order of layers is the one that it recorded."""

from __future__ import annotations

import sys
from typing import Any

from step_worker import FRAMES, GLOBAL, MODELS, SIZE, WIDTH, prepared
from worker import answer

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.training.step import JointStep

WARM_UP, STEPS = 2, 2
CASES = [(2, GLOBAL // 2), (2, GLOBAL), (4, GLOBAL), (8, GLOBAL)]  # micro steps, clips among which negatives are


def share(accumulation: int, contrastive_batch: int, process: ProcessInfo) -> float:
    """Of the layers that STEPS steps fetch, forward and backward."""
    model = MaskedVideoAutoencoder(MODELS["less"], frames=FRAMES, image_size=SIZE, embedding_width=WIDTH, seed=0)
    micro = GLOBAL // accumulation
    plan = EnginePlan(3, None, BatchLayout(GLOBAL, micro), "fp32", 1.0, 0.05, (0.9, 0.95))
    objective = Objective.of({"pixels": 1.0, "contrast": 1.0}, TermSettings(model.size), contrastive_batch)
    ds_engine = engine.build_engine(JointModule(model, objective), plan, process.device)
    step = JointStep(ds_engine, process, plan.layout, objective)
    parts = [prepared([a * micro + i for i in range(micro)], model.grid.tokens) for a in range(accumulation)]
    seen: list[bool] = []
    coordinator: Any = ds_engine.optimizer.parameter_offload.get_param_coordinator()
    fetch = coordinator.fetch_sub_module

    def counted(*arguments: Any, **named: Any) -> Any:
        seen.append(coordinator.is_complete_trace())
        return fetch(*arguments, **named)

    coordinator.fetch_sub_module = counted
    for i in range(WARM_UP + STEPS):
        if i == WARM_UP:
            seen.clear()
        engine.set_learning_rate(ds_engine, 1e-3)
        step(parts, float(GLOBAL))
    return sum(seen) / len(seen)


def results(process: ProcessInfo) -> dict[str, Any]:
    found = {}
    for accumulation, batch in CASES:
        passes = "two passes" if batch == GLOBAL else "one pass"
        found[f"{accumulation} micro steps, {passes}"] = share(accumulation, batch, process)
    return found


if __name__ == "__main__":
    answer(results, sys.argv[1])
