"""One point of `tgm-scale benchmark growth`, in its own process, so that its peak memory is no other point's.

A step is as in a run: DeepSpeed engine, tube masks, reconstruction, update; clips are noise, without guidance. A
checkpoint uses the same engine. Each process writes FOLDER/RANK.json."""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tgm_scale import config as configuration
from tgm_scale.assembly import parts
from tgm_scale.assembly.run_plan import RunPlan, plan_pretraining, shape_of
from tgm_scale.assembly.towers import Towers
from tgm_scale.benchmarks.checkpoint import engine_of
from tgm_scale.benchmarks.machine import save
from tgm_scale.benchmarks.timed import seconds_of
from tgm_scale.checkpoints.checkpoint import Progress, Retention
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.config import Config
from tgm_scale.contracts import Batch
from tgm_scale.engine import build as engine
from tgm_scale.runs.resume import Resume
from tgm_scale.runtime.command import leave
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo, find_process
from tgm_scale.runtime.memory import peak_resident_bytes
from tgm_scale.training.step import JointStep, PreparedBatch

_MOST, _LEAST, _SECONDS = 9, 3, 6.0  # most and least timed steps; seconds that end them; one more warms up
_TURNS = 3  # checkpoints


def main(kind: str, folder: Path, overrides: list[str]) -> None:
    config = configuration.load("debug", overrides)
    process = find_process()
    engine.start_processes(process)
    figures = _step(config, process) if kind == "step" else _checkpoint(config, process, folder)
    engine.stop_processes()
    save(folder / f"{process.rank}.json", figures)


def _step(config: Config, process: ProcessInfo) -> dict[str, Any]:
    plan = plan_pretraining(config, process)
    terms = parts.objective(config, plan.shape, Towers())
    built = engine.build_engine(parts.joint_module(config, plan.shape, Towers(), terms), plan.engine, process.device)
    step, prepared = JointStep(built, process, plan.layout, terms), _prepared(config, plan, process)
    engine.set_learning_rate(built, 1e-6)
    start = _forget_peak(process)
    seconds, walls, collectives = [], [], HostCollectives(process)
    while True:
        began = time.perf_counter()
        seconds.append(seconds_of(lambda: step([prepared], len(prepared.batch) * process.world_size), process.device))
        walls.append(time.perf_counter() - began)
        enough = len(seconds) > _MOST or (len(seconds) > _LEAST and sum(walls[1:]) > _SECONDS)
        if collectives.any(enough):
            break
    assert prepared.mask is not None
    return {
        "seconds": median(seconds[1:]),
        "wall_seconds": median(walls[1:]),
        "steps": len(seconds) - 1,
        "peak_MB": _peak(process) / 1e6,
        "start_MB": start / 1e6,  # before the first step
        "clips": len(prepared.batch),  # per process
        "visible_tokens": prepared.mask.visible.shape[1],
        "tokens": plan.shape.grid.tokens,
        "frames": plan.shape.frames,
        "pixels": plan.shape.image_size,
        "processes": process.world_size,
        "parameters": sum(one.numel() for one in built.module.parameters()),
    }


def _forget_peak(process: ProcessInfo) -> int:
    """Reset the peak and return the bytes in use."""
    gc.collect()
    if process.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(process.device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # "resets the peak resident set size": proc_pid_clear_refs(5)
    return _peak(process)


def _peak(process: ProcessInfo) -> int:
    if process.device.type == "cuda":
        return torch.cuda.max_memory_allocated(process.device)
    return peak_resident_bytes()


def _prepared(config: Config, plan: RunPlan, process: ProcessInfo) -> PreparedBatch:
    clips, shape = config.train.micro_batch_size, plan.shape
    none = torch.zeros(clips, dtype=torch.int64)
    ids = process.rank * clips + torch.arange(clips)
    batch = Batch(
        video=torch.randint(0, 256, (clips, 3, shape.frames, shape.image_size, shape.image_size), dtype=torch.uint8),
        captions=[""] * clips,
        keys=[f"noise/{number}" for number in ids.tolist()],
        seeds=ids,
        weight=torch.ones(clips),
        clip_ids=ids,
        crops=torch.zeros(clips, 5),
        starts=torch.zeros(clips),
    ).to(process.device)
    assert plan.masker is not None
    return PreparedBatch(batch, plan.masker(batch.seeds), None, none.to(process.device), none.to(process.device))


def _checkpoint(config: Config, process: ProcessInfo, folder: Path) -> dict[str, Any]:
    """Measure a checkpoint by wall-clock seconds, since disk time is not CPU time."""
    collectives = HostCollectives(process)
    seconds = _written(config, process, collectives, folder)
    size = sum(file.stat().st_size for file in next((folder / "checkpoints").iterdir()).iterdir())
    parameters = 0
    for _ in range(_TURNS + 1):  # the first warms up
        gc.collect()
        began = time.perf_counter()
        resume, resumed = Resume(folder, collectives), engine_of(config, process)
        assert resume.restore(resumed).step == _TURNS + 1
        seconds["resume_seconds"].append(time.perf_counter() - began)
        parameters = sum(one.numel() for one in resumed.module.parameters())
        del resume, resumed
    return {name: median(taken[1:]) for name, taken in seconds.items()} | {"parameters": parameters, "bytes": size}


def _written(
    config: Config, process: ProcessInfo, collectives: HostCollectives, folder: Path
) -> dict[str, list[float]]:
    saver = Saver(folder / "checkpoints", Retention(1), process, collectives)
    built, facts = engine_of(config, process), parts.checkpoint_metadata(config, shape_of(config))
    seconds: dict[str, list[float]] = {"stop_seconds": [], "write_seconds": [], "resume_seconds": []}
    for number in range(1, _TURNS + 2):
        began = time.perf_counter()
        saver.begin(built, Progress(step=number, updates=number), facts)
        seconds["stop_seconds"].append(time.perf_counter() - began)
        saver.finish()
        seconds["write_seconds"].append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
    leave()
