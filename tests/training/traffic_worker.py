"""Bytes that ranks send in a step, counted and planned: `torchrun ... traffic_worker.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tgm_scale import config as configuration
from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.assembly.parts import autoencoder, pixel_statistics
from tgm_scale.assembly.run_plan import plan_pretraining, run_masker
from tgm_scale.engine import build as engine
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.planning.cost import sent_bytes
from tgm_scale.runtime.distributed import ProcessInfo, find_process

STEPS = 2
# of which argument the size counts, and how often it goes round the ring
COLLECTIVES = {"all_reduce": (0, 2.0), "all_gather_into_tensor": (0, 1.0), "reduce_scatter_tensor": (1, 1.0)}
COLLECTIVES |= {"all_gather": (0, 1.0), "reduce_scatter": (1, 1.0), "broadcast": (0, 1.0), "reduce": (0, 1.0)}


class Counter:
    """Bytes that a rank sends by rings, at each of torch's collectives; made before DeepSpeed takes hold of them."""

    def __init__(self, ranks: int):
        self.bytes, self.share, self.inside = 0.0, (ranks - 1) / ranks, False
        for name, (which, rounds) in COLLECTIVES.items():
            setattr(dist, name, self._counting(getattr(dist, name), which, rounds))

    def _counting(self, collective: Any, which: int, rounds: float) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            outer, self.inside = self.inside, True
            if not outer:
                found: Any = [*arguments, *named.values()][which]
                tensors = [found] if isinstance(found, Tensor) else found
                self.bytes += rounds * self.share * sum(one.nbytes for one in tensors)
            try:
                return collective(*arguments, **named)
            finally:
                self.inside = outer

        return counted


def sent(counter: Counter, process: ProcessInfo, *overrides: str) -> dict[str, float]:
    """Bytes of a step after the first ones, for each parameter."""
    alone = ["objective.contrastive_weight=0", "masking.recipe=tube", "guidance.towers=null", "data.frames=2"]
    batch = ["train.global_batch_size=4", "train.micro_batch_size=1"]
    config = configuration.load("configs/debug.yaml", [*alone, *batch, *overrides])
    plan = plan_pretraining(config, process)
    model = autoencoder(plan.shape, config.model, 0, None, pixel_statistics(config.data))
    module = JointModule(model, Objective.of({"pixels": 1.0}, TermSettings(model.size)))
    count = sum(parameter.numel() for parameter in module.parameters())
    ds_engine = engine.build_engine(module, plan.engine, process.device)
    mask = run_masker(config)(torch.zeros(1, dtype=torch.int64))
    video = torch.zeros(1, 3, 2, 64, 64, dtype=torch.uint8)
    before = 0.0
    for _ in range(STEPS):
        before = counter.bytes
        for _ in range(plan.layout.accumulation):
            ds_engine.backward(ds_engine(video, mask.visible, mask.target)[0].sum())
            ds_engine.step()
    planned = sent_bytes(plan, count, checkpointing=False) / count
    return {"counted": (counter.bytes - before) / count, "planned": planned}


def main() -> None:
    torch.set_num_threads(1)
    process = find_process()
    counter = Counter(process.world_size)
    engine.start_processes(process)
    folder = Path(sys.argv[1])
    cases = [["train.precision=bf16", f"deepspeed.stage={stage}"] for stage in range(4)] + [["deepspeed.stage=1"]]
    # nothing stays gathered
    none = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_param_persistence_threshold": 0}
    lean = {"zero_optimization": {"stage": 3, **none, "stage3_prefetch_bucket_size": 0}}
    few = {"zero_optimization": {"stage": 2, "use_multi_rank_bucket_allreduce": False}}
    for name, tree in (("lean", lean), ("few", few)):
        if process.is_main:
            (folder / f"{name}.json").write_text(json.dumps(tree))
        dist.barrier()
        cases.append([f"deepspeed.config={folder / name}.json"])
    found = {" ".join(case): sent(counter, process, *case) for case in cases}
    if process.is_main:
        (folder / "traffic.json").write_text(json.dumps(found))
    engine.stop_processes()
    os._exit(0)


if __name__ == "__main__":
    main()
