"""Runs cases of real engine steps in one process group: `torchrun ... step_worker.py CASES OUT`.

Every case trains a small model on the same made clips; some save at a step, some go on from another's checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cpuinfo
import torch
from worker import answer

from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.checkpoints import checkpoint, folders
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.contracts import Batch, BatchLayout, Mask
from tgm_scale.engine import build as engine
from tgm_scale.engine import state as engine_state
from tgm_scale.engine.plan import EnginePlan
from tgm_scale.models.compiling import compile_blocks
from tgm_scale.models.pretraining import MaskedVideoAutoencoder
from tgm_scale.models.vit import SIZES, ModelOptions, ModelSize
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.runtime import seeding
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo
from tgm_scale.training.data_digest import clip_hashes
from tgm_scale.training.step import JointStep, PreparedBatch

FRAMES, SIZE, WIDTH, GLOBAL = 4, 32, 16, 8
CLIPS, CAPTIONS = 40, 13  # few captions: equal ones meet in a batch
# for many cases: the fixed costs of an engine are most of its time. Sides that two processes do not divide are wanted
MODELS = {"tiny": SIZES["tiny"], "less": ModelSize(36, 2, 2, 77, 20, 1, 2, 33, patch=8)}
MODELS["cross"] = replace(MODELS["less"], decoder_depth=2, decoder_attention="cross")


def prepared(ids: list[int], tokens: int) -> PreparedBatch:
    """Made clips, masks and embeddings by number; every seventh clip is broken."""
    videos, visible, target = [], [], []
    for i in ids:
        generator = seeding.generator("clip", i)
        videos.append(torch.randint(0, 255, (3, FRAMES, SIZE, SIZE), generator=generator, dtype=torch.uint8))
        order = torch.randperm(tokens, generator=generator)
        visible.append(order[: tokens // 4].sort().values)
        target.append(order[tokens // 4 : tokens // 2].sort().values)
    text = [torch.randn(WIDTH, generator=seeding.generator("text", i % CAPTIONS)) for i in ids]
    number = torch.tensor(ids)
    weight = (number % 7 != 3).float()
    keys = [str(i) for i in ids]
    batch = Batch(torch.stack(videos), keys, keys, number, weight, number, torch.zeros(len(ids), 5), weight)
    mask = Mask(torch.stack(visible), torch.stack(target))
    return PreparedBatch(batch, mask, torch.stack(text), number % CAPTIONS, torch.tensor(clip_hashes(batch)))


def run_case(case: dict, process: ProcessInfo, collectives: HostCollectives) -> dict:
    model = MaskedVideoAutoencoder(
        MODELS[case.get("model", "tiny")],
        frames=FRAMES,
        image_size=SIZE,
        embedding_width=WIDTH,
        options=ModelOptions(activation_checkpointing=case.get("activation_checkpointing", False)),
        seed=0,
    )
    if "compile" in case:
        compile_blocks(model, backend=case["compile"])
    tokens = model.grid.tokens
    micro = case.get("micro", GLOBAL // process.world_size)
    layout = BatchLayout(GLOBAL, micro, process.rank, process.world_size)
    plan = EnginePlan(case["stage"], case.get("json"), layout, case["precision"], 1.0, 0.05, (0.9, 0.95))
    engine.wants_fused = lambda device: bool(case.get("fused"))  # as on a GPU
    weights = {"pixels": 1.0, "contrast": 1.0}
    objective = Objective.of(weights, TermSettings(model.size), case.get("contrastive_batch"))
    ds_engine = engine.build_engine(JointModule(model, objective), plan, process.device)
    step = JointStep(ds_engine, process, layout, objective)
    progress = checkpoint.Progress()
    if "load" in case:
        folder = folders.latest(Path(case["load"]))
        assert folder is not None
        progress = checkpoint.restore(ds_engine, folder)
    curve: list[list[Any]] = []
    refusals: list[str | None] = []
    for t in range(progress.step, case["steps"]):
        if t == case.get("save_at"):
            keep_free = 1.0 if case.get("streamed") else 0.0  # no host has all of its memory left
            saver = Saver(Path(case["save"]), checkpoint.Retention(2), process, collectives, keep_free)
            saver.begin(ds_engine, progress, {})
            live = live_weights(ds_engine)
        starts = [t * GLOBAL + (a * process.world_size + process.rank) * micro for a in range(layout.accumulation)]
        parts = [prepared([(s + i) % CLIPS for i in range(micro)], tokens) for s in starts]
        valid = collectives.sum([sum(float(part.batch.weight.sum()) for part in parts)])[0]
        engine.set_learning_rate(ds_engine, 1e-3)
        limit = math.inf
        if t == case.get("poison_at"):
            before = digests(ds_engine)
            if case["poison"] == "loss":
                assert parts[0].text_BE is not None
                parts[0].text_BE[1] = float("nan")  # of a clip that counts
            elif case["poison"] == "gradient":
                parameter = next(ds_engine.module.parameters())
                hook = parameter.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
            else:
                limit = curve[-1][0] / 2
        result = step(parts, valid, limit)
        if t == case.get("poison_at") and case["poison"] == "gradient":
            hook.remove()
        progress.step = t + 1
        progress.updates += result.refusal is None
        refusals.append(result.refusal)
        terms = [result.metrics[name] for name in ("loss_reconstruction", "loss_contrastive")]
        curve.append([result.loss, *terms, result.grad_norm])
        if result.refusal is not None:
            untouched = digests(ds_engine) == before
    found: dict[str, Any] = {"curve": curve, "refusals": refusals, "state": digests(ds_engine)}
    found["updates"] = sorted({int(state["step"]) for state in engine_state.adam(ds_engine).state.values()})
    if "poison_at" in case:
        found["refused_untouched"] = untouched
    if "save" in case:
        folder = saver.finish()  # written while the steps after it were made
        assert folder is not None
        saved = checkpoint.Reader(folder).weights()
        found["saved_is_live"] = saved.keys() == live.keys() and all(
            torch.equal(saved[name].to(value.dtype), value) for name, value in live.items()
        )
    return found


def live_weights(ds_engine: Any) -> dict[str, torch.Tensor]:
    """What the module computes with, whole, copied by DeepSpeed's own means."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(ds_engine.module.parameters())):
        return {name: parameter.detach().clone() for name, parameter in ds_engine.module.named_parameters()}


def digests(ds_engine: Any) -> dict[str, str]:
    """A hash of each parameter's weight and moments; collective."""
    return {
        f"{name}.{part}": hashlib.blake2b(t.float().cpu().contiguous().numpy().tobytes(), digest_size=8).hexdigest()
        for name, parts in engine_state.read(ds_engine)
        for part, t in parts.items()
    }


def results(process: ProcessInfo) -> dict[str, Any]:
    collectives = HostCollectives(process)
    cases = json.loads(Path(sys.argv[1]).read_text())
    return {name: run_case(case, process, collectives) for name, case in cases.items()}


if __name__ == "__main__":
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # a second, which each of DeepSpeed's Adams takes
    answer(results, sys.argv[2])
