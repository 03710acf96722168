"""Benchmark of resuming from a checkpoint: building the engine and loading its state, with and without hash checks."""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from tgm_scale import config as configuration
from tgm_scale.assembly import parts
from tgm_scale.assembly.joint_module import JointModule
from tgm_scale.assembly.run_plan import plan_pretraining, shape_of
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.checkpoints import folders, manifest
from tgm_scale.checkpoints.checkpoint import Progress, Reader, Retention
from tgm_scale.checkpoints.folders import folder_of
from tgm_scale.checkpoints.saver import Saver
from tgm_scale.config import Config
from tgm_scale.engine import build as engine
from tgm_scale.objectives.term import TermSettings
from tgm_scale.objectives.terms import Objective
from tgm_scale.runs.resume import Resume
from tgm_scale.runtime.distributed import HostCollectives, ProcessInfo, find_process


def run(options: argparse.Namespace) -> dict[str, Any]:
    config = configuration.load(options.config, options.overrides)
    process = find_process()
    if process.world_size > 1:
        raise ValueError("this benchmark is of one process: start it without torchrun")
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    engine.start_processes(process)
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
            return _measured(config, process, Path(scratch), options.turns)
    finally:
        engine.stop_processes()


def _measured(config: Config, process: ProcessInfo, folder: Path, turns: int) -> dict[str, Any]:
    collectives = HostCollectives(process)
    hashed, plain = folder / "hashed", folder / "plain"
    saver = Saver(hashed / "checkpoints", Retention(1), process, collectives)
    made = engine_of(config, process)
    saver.begin(made, Progress(step=1, updates=1), parts.checkpoint_metadata(config, shape_of(config)))
    written = saver.finish()
    assert written is not None
    del made
    _without_hashes(written, plain / "checkpoints")
    size = sum(file.stat().st_size for file in written.iterdir())
    ways = ("without", "with", "building the engine alone", "hashes alone", "blake2b alone")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):  # the first warms up the page cache
        for name, root in (("without", plain), ("with", hashed)):
            with _timed(seconds[name], turn):
                resume = Resume(root, collectives)
                resumed = engine_of(config, process)
                resume.restore(resumed)
            del resume, resumed
            gc.collect()
        with _timed(seconds["building the engine alone"], turn):
            built = engine_of(config, process)
        del built
        gc.collect()
        for name, quick in (("hashes alone", True), ("blake2b alone", False)):
            with _timed(seconds[name], turn):
                Reader(written).verify(quick=quick)
    figures: dict[str, Any] = {name: median(taken) for name, taken in seconds.items()}
    pairs = zip(seconds["with"], seconds["without"])
    figures |= {"bytes": size, "more": median(one / other - 1 for one, other in pairs)}
    print(f"{headline()}; model.size={config.model.size}, {size / 1e9:.2f} GB; medians of {turns} turns")
    rows = [(name, f"{figures[name]:.2f}") for name in seconds]
    print(table(("resuming, hashes", "seconds"), [*rows, ("more, median of turns", f"{figures['more']:.1%}")]))
    return figures


@contextmanager
def _timed(into: list[float], turn: int) -> Iterator[None]:
    began = time.perf_counter()
    yield
    if turn:
        into.append(time.perf_counter() - began)


def engine_of(config: Config, process: ProcessInfo) -> Any:
    model = parts.autoencoder(shape_of(config), config.model, 0, None, parts.pixel_statistics(config.data))
    module = JointModule(model, Objective.of({"pixels": 1.0}, TermSettings(model.size)))
    return engine.build_engine(module, plan_pretraining(config, process).engine, process.device)


def _without_hashes(written: Path, root: Path) -> None:
    """Write the same checkpoint, with hard links to its files, like an old version's without hashes."""
    folder = folder_of(root, 1)
    folder.mkdir(parents=True)
    tree = manifest.read(written)
    for entry in tree["files"]:
        del entry["blake2b"], entry["sums"]
        os.link(written / entry["name"], folder / entry["name"])
    rest = {key: value for key, value in tree.items() if key not in ("blake2b", "format")}
    (folder / manifest.NAME).write_text(manifest.to_json(rest), encoding="utf-8")
    assert folders.latest(root) == folder
