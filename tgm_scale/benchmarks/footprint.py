"""Planned memory compared with runs: each case is a short run in its own processes, on the CPU.

Measured: peak resident memory of the largest process up to the last step, less that of a run of the same stage and
processes whose model has two blocks and sees a clip of 16 tokens, since the memory of Python, torch, DeepSpeed, gloo
and the decoder is not the model's. Freed pages are returned at once (MALLOC_MMAP_THRESHOLD_), so those that glibc
would keep are not counted."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field

from tgm_scale import config as configuration
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.config import Config
from tgm_scale.models.vit import SIZES
from tgm_scale.planning.footprint import LOWEST_STAGE, OFFLOADS, SECTIONS, Footprint, footprint
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime.distributed import ProcessInfo
from tgm_scale.runtime.memory import peak_resident_bytes
from tgm_scale.runtime.mistakes import refuse_damaged
from tgm_scale.runtime.outside.json_text import json_lines
from tgm_scale.runtime.processes import LocalRun
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.runtime.terminal import message

_ALONE = ["guidance.towers=null", "objective={contrastive_weight: 0}", "masking.recipe=tube"]
_QUIET = ["log.tensorboard=false", "log.wandb=null", "log.every=1", "train.steps=1000", "checkpoint.every=1000"]
_BARE = ["model.depth=1", "model.decoder_depth=1", "data.frames=2", "data.size=32"]  # for the tiny model: the base
_LOOK, _PATIENCE = 0.1, 900.0  # seconds between checks; seconds without a step
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_MOST_MISSED = 0.10  # of the measured memory


class _Kept(BaseModel):
    """Line of measured.jsonl."""

    key: str
    bytes: int = Field(ge=1)


@dataclass(frozen=True)
class Case:
    size: str
    stage: int
    offload: str  # one of footprint.OFFLOADS
    processes: int
    bare: bool = False  # whether it is the base of other cases

    @property
    def base(self) -> Case:
        return dataclasses.replace(self, size="tiny", bare=True)

    def overrides(self, micro: int, folder: Path) -> list[str]:
        """Return the overrides of this case; with offload, they name a JSON file written to the folder."""
        batch = f"train.global_batch_size={2 * micro * self.processes}"  # two micro steps: gradients are summed
        size = [f"model.size={self.size}", f"train.micro_batch_size={micro}", batch, *(_BARE if self.bare else [])]
        if self.offload == "none":
            return [*size, "deepspeed.config=null", f"deepspeed.stage={self.stage}"]
        sections = {name: {"device": "cpu"} for name in SECTIONS[self.offload]}
        file = folder / f"zero{self.stage}-offload-{self.offload}.json"
        file.write_text(json.dumps({"zero_optimization": {"stage": self.stage, **sections}}) + "\n", encoding="utf-8")
        return [*size, configuration.override("deepspeed.config", file), "deepspeed.stage=null"]

    @property
    def name(self) -> str:
        offload = "" if self.offload == "none" else f"-offload-{self.offload}"
        return f"{'base' if self.bare else self.size}-zero{self.stage}{offload}-{self.processes}"


def run(options: argparse.Namespace) -> dict[str, Any]:
    cases = _cases(options)
    if options.dir is None:
        with tempfile.TemporaryDirectory() as scratch:
            rows = _rows(options, cases, Path(scratch))
    else:
        rows = _rows(options, cases, options.dir)
    within = sum(abs(row["planned"] / row["measured"] - 1) <= _MOST_MISSED for row in rows)
    print(message(f"{headline()}; {options.config} {' '.join(options.overrides)}; MB of a process, beside its base"))
    header = ("model", "ZeRO", "offload", "processes", "base", "measured", "planned", "planned / measured")
    cells = [(*row["case"], *(f"{row[name] / 1e6:.0f}" for name in ("base", "measured", "planned"))) for row in rows]
    ratios = [f"{row['planned'] / row['measured']:.2f}" for row in rows]
    print(table(header, [(*cell, ratio) for cell, ratio in zip(cells, ratios)]))
    print(f"{within} of {len(rows)} within {_MOST_MISSED:.0%}")
    return {"cases": rows, "within": within}


def _cases(options: argparse.Namespace) -> list[Case]:
    sizes = options.sizes.split(",")
    if unknown := [size for size in sizes if size not in SIZES]:
        raise ValueError(f"--sizes {unknown[0]}: known are {', '.join(SIZES)}")
    offloads = options.offloads.split(",")
    if unknown := [name for name in offloads if name not in OFFLOADS]:
        raise ValueError(f"--offloads {unknown[0]}: known are {', '.join(OFFLOADS)}")
    stages = _numbers("--stages", options.stages, 0, 3)
    processes = _numbers("--processes", options.processes, 1, 64)
    if min(options.micro, options.steps) < 1:
        raise ValueError("--micro and --steps: wanted at least 1")
    cases = [Case(*one) for one in itertools.product(sizes, stages, offloads, processes)]
    found = [case for case in cases if case.stage >= LOWEST_STAGE[case.offload]]
    if not found:
        raise ValueError(f"--offloads {options.offloads}: the optimizer wants stage 1 or higher, all wants stage 3")
    return found


def _numbers(option: str, text: str, low: int, high: int) -> list[int]:
    words = text.split(",")
    for word in words:
        if not word.isdecimal() or not low <= int(word) <= high:
            raise ValueError(f"{option} {text}: found {word!r}, wanted numbers from {low} to {high}, such as {low}")
    return [int(word) for word in words]


def _rows(options: argparse.Namespace, cases: list[Case], folder: Path) -> list[dict[str, Any]]:
    """Return each case's figures: measured once, planned anew."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "measured.jsonl"
    kept = json_lines(file) if file.is_file() else []
    refuse_damaged(list[_Kept], kept, file, "move it away, or name another --dir")
    known = {row["key"]: row["bytes"] for row in kept}
    planned: dict[Case, Footprint] = {}
    measured: dict[Case, float] = {}
    every = [*dict.fromkeys(case.base for case in cases), *cases]
    with ProgressBars() as bars:
        task = bars.task("runs", len(every))
        for number, case in enumerate(every):
            task.to(number, case.name)
            given = [*_ALONE, *options.overrides, *_QUIET, *case.overrides(1 if case.bare else options.micro, folder)]
            planned[case] = _planned(configuration.load(options.config, given), case)
            key = json.dumps([options.steps, options.config, *given])
            if key not in known:
                known[key] = _peak(options, case, folder, given)
                with file.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"key": key, "bytes": known[key]}) + "\n")
            measured[case] = known[key]
        task.to(len(every))
    rows = []
    for case in cases:
        base = measured[case.base] - planned[case.base].on_cpu
        figures = {"base": base, "measured": measured[case] - base, "planned": planned[case].on_cpu}
        named = (case.size, case.stage, case.offload, case.processes)
        rows.append({"case": named, **figures, "parts": dataclasses.asdict(planned[case])})
    return rows


def _planned(config: Config, case: Case) -> Footprint:
    process = ProcessInfo(0, case.processes, 0, torch.device("cpu"))
    return footprint(plan_pretraining(config, process), config.model.activation_checkpointing)


def _peak(options: argparse.Namespace, case: Case, folder: Path, given: list[str]) -> int:
    """Return the bytes of the largest process in a short run. Raises RuntimeError where the run ends or hangs."""
    scratch = Path(tempfile.mkdtemp(prefix=f"{case.name}-", dir=folder))
    words = [*given, configuration.override("run.dir", scratch / "run")]
    command = [sys.executable, "-m", "tgm_scale", "pretrain", "--config", options.config, *words]
    seen, since, log = 0, time.monotonic(), scratch / "output.log"
    with LocalRun(command, case.processes, log, _MALLOC) as life:
        while (made := _made(scratch / "run")) < options.steps:
            seen, since = (made, time.monotonic()) if made > seen else (seen, since)
            if life.ended() or time.monotonic() > since + _PATIENCE:
                last = " ".join(log.read_text(encoding="utf-8").splitlines()[-3:])
                raise RuntimeError(f"{case.name}: {made} of {options.steps} steps were made, {log}: {last}")
            time.sleep(_LOOK)
        return max(peak_resident_bytes(process.pid) for process in life.ranks)


def _made(run: Path) -> int:
    return len(read_metrics(run)) if (run / "metrics.jsonl").is_file() else 0
