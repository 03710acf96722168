"""Trains the classifier on real engines, one case after another: `torchrun ... classifier_worker.py OUT`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from worker import answer

from tgm_scale.checkpoints import ema
from tgm_scale.contracts import BatchLayout
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.finetuning.head_norm import BatchStatistics, Inputs
from tgm_scale.models.classifier import VideoClassifier
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.models.vit import ModelOptions, ModelSize
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import ProcessInfo

SIZE = ModelSize(36, 2, 2, 77, 0, 0, 0, 0, patch=8)  # sides that two processes do not divide
CLIPS, STEPS = 4, 4
UNUSABLE = 2  # of the clips with a norm before the head
AVERAGED = [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "fp32"), (2, "bf16")]
NORMED = [(0, "fp32"), (1, "bf16")]  # and stage 3
# stage 3 last: it replaces torch's linear for the whole process by one that rounds differently
CASES = {
    f"stage {stage}, {precision}, {how}": (stage, precision, how)
    for stage in (0, 2, 3)
    for precision in ("fp32", "bf16")
    for how in ("plain", "checkpointed", "compiled")
    if (stage, how) not in ((0, "checkpointed"), (0, "compiled"), (3, "compiled"), (2, "plain"))
}


def clip(number: int) -> torch.Tensor:
    generator = seeding.generator("clip", number)
    return torch.randint(0, 256, (3, 4, 32, 32), generator=generator, dtype=torch.uint8)


def normed(stage: int, precision: str, process: ProcessInfo) -> list[float]:
    """Losses with a norm before the head over four clips, each in a micro batch of its own; one has no weight."""
    model = VideoClassifier(SIZE, 4, 32, classes=5, options=ModelOptions(drop_path=0.3), seed=0)
    layout = BatchLayout(CLIPS, 1, process.rank, process.world_size)
    plan = EnginePlan(stage, None, layout, precision, None, 0.05, (0.9, 0.95))
    ds_engine = engine.build_engine(model, plan, process.device)
    ds_engine.train()
    statistics = BatchStatistics(ds_engine, process.device, None)
    losses = []
    for step in range(STEPS):
        engine.set_learning_rate(ds_engine, 1e-3)
        parts = []
        for index in range(layout.accumulation):
            number = torch.tensor([index * process.world_size + process.rank])
            targets = F.one_hot(number, 5).float()
            weight = (number != UNUSABLE).float()
            parts.append(Inputs(clip(int(number))[None], targets, number + CLIPS * step, weight))
        norm = statistics.of_batch(parts, CLIPS - 1)
        whole = torch.zeros(())
        for index, part in enumerate(parts):
            scores, features = ds_engine(part.video, part.seeds_B, norm.norm_2D)
            error = F.cross_entropy(scores.float(), part.targets_BC, reduction="none")
            loss = (error * part.weight_B).sum() / (CLIPS - 1)
            whole += loss.detach()
            surrogate = norm.surrogate(features, part.weight_B)
            ds_engine.backward((loss + surrogate) * process.world_size * layout.accumulation)
            if index < layout.accumulation - 1:
                ds_engine.step()
        ds_engine.step()
        torch.distributed.all_reduce(whole)
        losses.append(whole.item())
    return losses


def curve(stage: int, precision: str, how: str, process: ProcessInfo) -> list[float]:
    model = VideoClassifier(
        SIZE,
        4,
        32,
        classes=5,
        options=ModelOptions(drop_path=0.3, activation_checkpointing=how == "checkpointed"),
        seed=0,
    )
    if how == "compiled":
        compile_blocks(model, backend="aot_eager")
    micro = CLIPS // process.world_size
    plan = EnginePlan(
        stage, None, BatchLayout(CLIPS, micro, process.rank, process.world_size), precision, 1.0, 0.05, (0.9, 0.95)
    )
    ds_engine = engine.build_engine(model, plan, process.device)
    ds_engine.train()
    losses = []
    for step in range(STEPS):
        numbers = torch.arange(micro) + process.rank * micro
        video = torch.stack([clip(int(number)) for number in numbers])
        engine.set_learning_rate(ds_engine, 1e-2)
        loss = F.cross_entropy(ds_engine(video, numbers + CLIPS * step).float(), numbers)
        ds_engine.backward(loss)
        ds_engine.step()
        whole = loss.detach() / process.world_size
        torch.distributed.all_reduce(whole)
        losses.append(whole.item())
    return losses


def averaged(stage: int, precision: str, process: ProcessInfo, folder: Path) -> float:
    """How far the average of two updates is from that of the fp32 weights after each, at most."""
    model = VideoClassifier(SIZE, 4, 32, classes=5, seed=0)
    micro = CLIPS // process.world_size
    plan = EnginePlan(
        stage, None, BatchLayout(CLIPS, micro, process.rank, process.world_size), precision, 1.0, 0.05, (0.9, 0.95)
    )
    ds_engine = engine.build_engine(model, plan, process.device)
    ds_engine.train()

    def weights() -> dict[str, torch.Tensor]:
        return {name: parts["weight"].clone() for name, parts in engine_state.read(ds_engine)}

    average = ema.Average(partial(engine_state.masters, ds_engine), 0.5, folder)
    video = torch.randint(0, 256, (micro, 3, 4, 32, 32), generator=seeding.generator("clip"), dtype=torch.uint8)
    engine.set_learning_rate(ds_engine, 1e-4)
    after = []
    for _ in range(2):
        ds_engine.backward(F.cross_entropy(ds_engine(video, torch.arange(micro)).float(), torch.arange(micro)))
        ds_engine.step()
        average.update()
        after.append(weights())
    if process.is_main:
        average.write(1, [])
    torch.distributed.barrier()
    found, (first, second) = ema.read(folder, 1), after
    assert any(not torch.equal(first[name], second[name]) for name in second)
    return max((found[name] - (0.5 * first[name] + second[name]) / 1.5).abs().max().item() for name in second)


def results(process: ProcessInfo) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for stage, precision in AVERAGED:
        distance = averaged(stage, precision, process, Path(sys.argv[1]).parent)
        found[f"average, stage {stage}, {precision}"] = [distance]
    found |= {f"normed, stage {stage}, {precision}": normed(stage, precision, process) for stage, precision in NORMED}
    found |= {name: curve(*case, process) for name, case in CASES.items()}
    found["normed, stage 3, fp32"] = normed(3, "fp32", process)
    return found


if __name__ == "__main__":
    answer(results, sys.argv[1])
