"""Steps of Lion on real engines: `torchrun ... lion_worker.py CASES OUT`; see test_lion.py.

A small network on made numbers; in fp32 each step is compared with the formula of the paper on the whole batch."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
from step_worker import digests
from torch import Tensor, nn
from worker import answer

from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan, parameter_groups
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo

GLOBAL, STEPS, SAVED, RATE, DECAY, BETAS = 8, 6, 3, 1e-3, 0.5, (0.8, 0.95)


def network() -> nn.Module:
    """Of sides that two processes do not divide."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 11), nn.LayerNorm(11), nn.GELU(), nn.Linear(11, 5))


def rows(step: int) -> tuple[Tensor, Tensor]:
    generator = seeding.generator("rows", step)
    return torch.randn(GLOBAL, 7, generator=generator), torch.randn(GLOBAL, 5, generator=generator)


def error(predicted: Tensor, wanted: Tensor) -> Tensor:
    return (predicted.float() - wanted).square().mean()


class Plain:
    """Algorithm 2 of arXiv 2302.06675, term by term, in float64 on weights of float32's gradient."""

    def __init__(self) -> None:
        self.module = network()
        decayed = {id(p) for p in parameter_groups(self.module, DECAY)[0]["params"]}
        self.decay = {name: DECAY * (id(p) in decayed) for name, p in self.module.named_parameters()}
        self.moment = {name: torch.zeros_like(p) for name, p in self.module.named_parameters()}

    def step(self, step: int) -> None:
        inputs, wanted = rows(step)
        self.module.zero_grad()
        error(self.module(inputs), wanted).backward()
        with torch.no_grad():
            for name, p in self.module.named_parameters():
                m, g = self.moment[name], p.grad
                update = torch.sign(BETAS[0] * m + (1 - BETAS[0]) * g)
                p -= RATE * (update + self.decay[name] * p)
                self.moment[name] = BETAS[1] * m + (1 - BETAS[1]) * g

    def apart(self, ds_engine: Any) -> float:
        own = dict(self.module.named_parameters())
        return max(
            float((parts[part].cpu() - (own[name].detach() if part == "weight" else self.moment[name])).abs().max())
            for name, parts in engine_state.read(ds_engine)
            for part in parts
        )


def run_case(case: dict[str, Any], process: ProcessInfo, collectives: HostCollectives) -> dict[str, Any]:
    micro = case.get("micro", GLOBAL // process.world_size)
    layout = BatchLayout(GLOBAL, micro, process.rank, process.world_size)
    plan = EnginePlan(case["stage"], None, layout, case.get("precision", "fp32"), None, DECAY, BETAS, "lion")
    ds_engine = engine.build_engine(network(), plan, process.device)
    progress, plain, apart, losses = checkpoint.Progress(), Plain(), 0.0, []
    if "load" in case:
        progress = checkpoint.restore(ds_engine, folders.latest(Path(case["load"])))
        for step in range(progress.step):
            plain.step(step)
    for step in range(progress.step, STEPS):
        if "save" in case and step == SAVED:
            saver = Saver(Path(case["save"]), checkpoint.Retention(2), process, collectives, 0.0)
            saver.begin(ds_engine, progress, {})
        inputs, wanted = rows(step)
        engine.set_learning_rate(ds_engine, RATE)
        dtype = torch.bfloat16 if plan.precision == "bf16" else torch.float32
        for a in range(layout.accumulation):
            start = (a * process.world_size + process.rank) * micro
            part = slice(start, start + micro)
            loss = error(ds_engine(inputs[part].to(dtype)), wanted[part])
            ds_engine.backward(loss)
            if a < layout.accumulation - 1:
                ds_engine.step()
        refused = step == case.get("refused_at")
        outcome = engine.make_update(
            ds_engine, torch.zeros(1).double(), loss.detach().double(), 0.0 if refused else math.inf
        )
        assert (outcome.refusal is None) != refused
        losses.append(outcome.loss)
        progress.step, progress.updates = step + 1, progress.updates + (not refused)
        if not refused:
            plain.step(step)
        apart = max(apart, plain.apart(ds_engine))
    if "save" in case:
        saver.finish()
    parts = sorted({part for _, found in engine_state.read(ds_engine) for part in found})
    return {"apart": apart, "losses": losses, "state": digests(ds_engine), "parts": parts}


def results(process: ProcessInfo) -> dict[str, Any]:
    collectives = HostCollectives(process)
    cases = json.loads(Path(sys.argv[1]).read_text())
    return {name: run_case(case, process, collectives) for name, case in cases.items()}


if __name__ == "__main__":
    answer(results, sys.argv[2])
