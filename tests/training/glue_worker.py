"""What DeepSpeed's engine waits for, and how long its collectives may take: `glue_worker.py OUT`; test_glue.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.runtime.distributed import ProcessInfo, find_process

OFFLOAD = "configs/deepspeed/zero2_offload.json"
PATIENCE, STEPS, MICRO_STEPS = 22222, 4, 2  # DeepSpeed's timer begins at the third step


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs).float().square().mean()


def waits(stage: int, precision: str, process: ProcessInfo) -> int:
    """How often the host waits for all of the device's work, in steps of two passes, the first without a gradient."""
    from deepspeed.accelerator import get_accelerator

    plan = EnginePlan(stage, None, BatchLayout(4 * MICRO_STEPS, 4), precision, 1.0, 0.05, (0.9, 0.95))
    ds_engine = engine.build_engine(Square(), plan, process.device)
    clips = torch.ones(4, 8, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    found: list[None] = []
    accelerator: Any = get_accelerator()
    accelerator.synchronize = lambda *_: found.append(None)
    for _ in range(STEPS):
        engine.set_learning_rate(ds_engine, 1e-3)
        with torch.no_grad():
            for _ in range(MICRO_STEPS):
                ds_engine(clips)
        for micro in range(MICRO_STEPS):
            loss = ds_engine(clips)
            ds_engine.backward(loss)
            if micro < MICRO_STEPS - 1:
                ds_engine.step()
        engine.make_update(ds_engine, torch.zeros(1, dtype=torch.float64), loss.detach().double(), 1e9)
    del accelerator.synchronize
    return len(found)


def offloaded(cores: int, process: ProcessInfo) -> tuple[list[int], list[float]]:
    """Threads while Adam on the host makes its update, and after it; and the weights then."""
    plan = EnginePlan(2, OFFLOAD, BatchLayout(4, 4), "fp32", 1.0, 0.05, (0.9, 0.95))
    torch.manual_seed(0)
    ds_engine = engine.build_engine(Square(), plan, process.device, cores=cores)
    threads: list[int] = []
    engine_state.adam(ds_engine).register_step_pre_hook(lambda *_: threads.append(torch.get_num_threads()))
    engine.set_learning_rate(ds_engine, 1e-3)
    loss = ds_engine(torch.ones(4, 8))
    ds_engine.backward(loss)
    engine.make_update(ds_engine, torch.zeros(1, dtype=torch.float64), loss.detach().double(), 1e9)
    return [*threads, torch.get_num_threads()], ds_engine.module.layer.weight.flatten().tolist()


def timeouts(process: ProcessInfo) -> list[float]:
    """Seconds: of the group of all processes, and of the one in which DeepSpeed reduces gradients."""
    from deepspeed.utils import groups

    both = (torch.distributed.group.WORLD, groups._get_data_parallel_group())
    return [group._get_backend(process.device).options._timeout.total_seconds() for group in both]


if __name__ == "__main__":
    torch.set_num_threads(1)
    alone = find_process()
    engine.start_processes(alone, patience=PATIENCE)
    cases = ((1, "bf16"), (2, "bf16"), (3, "bf16"), (0, "fp32"))
    [one, weights], [several, same] = offloaded(1, alone), offloaded(3, alone)
    assert weights == same
    answer = {
        "one": one,
        "several": several,
        "waits": [waits(*case, alone) for case in cases],
        "timeouts": timeouts(alone),
    }
    Path(sys.argv[1]).write_text(json.dumps(answer))
    engine.stop_processes()
    os._exit(0)
