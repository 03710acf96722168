"""Growth of time and memory: a step by visible tokens, batch, frames, resolution and processes, a checkpoint by
parameters, the parts of a start, the memory of trainer and data workers.

Each point has its own process, or one per rank. A point in DIR/growth.json with the same settings, versions and
machine is not measured again. On a CPU a step's seconds are CPU time, since other processes may use the cores."""

from __future__ import annotations

import argparse
import json
import os
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tgm_scale
from tgm_scale import config as configuration
from tgm_scale.assembly.corpora import make_synthetic
from tgm_scale.benchmarks import growth_figure, growth_kept
from tgm_scale.benchmarks.growth_tables import of_points
from tgm_scale.benchmarks.machine import described, headline, save
from tgm_scale.models.vit import SIZES
from tgm_scale.runs.environment import versions
from tgm_scale.runtime.files import check_output, replacing
from tgm_scale.runtime.outside.json_text import json_object
from tgm_scale.runtime.processes import LocalRun
from tgm_scale.runtime.progress import ProgressBars

_ALONE = ("guidance.towers=null", "objective={contrastive_weight: 0}", "masking.recipe=tube", "data.stride=1")
_FRAMES, _CHECKPOINTED = 16, ("tiny", "S", "B")
_RATIOS = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2, 0.02)  # 0 would hide nothing
_COMPILED = (".py", ".pyc", ".so")


@dataclass(frozen=True)
class Point:
    """Measurement in one process, or in one per rank. kind: step, checkpoint or start."""

    question: str  # one of growth_tables.QUESTIONS, or start, workers
    kind: str
    overrides: tuple[str, ...]
    processes: int = 1
    name: str = ""  # for a start: cold, warm, or imports (warm, with a clock at each import)

    def key(self) -> dict[str, Any]:
        """Return the facts that determine the figures: equal keys give equal figures, up to noise."""
        machine = {name: value for name, value in described().items() if name in ("processor", "cores", "gpu")}
        threads = os.environ.get("OMP_NUM_THREADS", "1")  # as in LocalRun
        own = {"kind": self.kind, "name": self.name, "overrides": list(self.overrides), "processes": self.processes}
        return own | {"threads": threads, "machine": machine, "versions": versions()}


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.size not in SIZES:
        raise ValueError(f"--size {options.size}: known are {', '.join(SIZES)}")
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    check_output("--output", folder / "growth.json", "JSON file")
    check_output("--output", folder / "growth.png", "picture")
    figures = measure(points_of(options.size), folder)
    print(f"{headline()}; {options.size}; a step's seconds are of {'the GPU' if figures['gpu'] else 'CPU time'}")
    print("\n\n".join(of_points(figures["points"])))
    with replacing(folder / "growth.png") as file:
        file.write_bytes(growth_figure.png(figures["points"]))
    print(f"{folder / 'growth.png'}, {folder / 'growth.json'}")
    return figures


def points_of(size: str) -> list[Point]:
    """Return the points of all questions at one model size, with clips of 224 pixels, or 64 for the tiny model."""
    pixels = 64 if size == "tiny" else 224

    def step(question: str, key: str, value: float, batch: int = 1, processes: int = 1) -> Point:
        clip = {"data.frames": _FRAMES, "data.size": pixels, "masking.mask_ratio": 0.9, key: value}
        batches = {"train.micro_batch_size": batch, "train.global_batch_size": batch * processes}
        words = [f"{name}={given}" for name, given in {"model.size": size, **clip, **batches}.items()]
        return Point(question, "step", (*_ALONE, *words), processes)

    found = [step("visible tokens", "masking.mask_ratio", ratio) for ratio in _RATIOS]
    found += [step("batch", "data.frames", _FRAMES, batch=batch) for batch in (1, 2, 4, 8)]
    found += [step("frames", "data.frames", frames) for frames in (16, 32, 64, 128)]
    found += [step("resolution", "data.size", pixels * times // 2) for times in (1, 2, 3, 4)]
    found += [step("processes", "data.frames", _FRAMES, processes=processes) for processes in (1, 2, 4)]
    sizes = [f"model.size={name}" for name in _CHECKPOINTED]
    found += [Point("checkpoint", "checkpoint", (*_ALONE, words, f"data.size={pixels}")) for words in sizes]
    found += [start("start", size, 1, name) for name in ("cold", "warm", "imports")]
    return found + [start("workers", size, workers, "warm") for workers in (0, 1, 2, 4)]


def start(question: str, size: str, workers: int, name: str) -> Point:
    """Return a start of configs/debug.yaml with its guidance, at another model size."""
    return Point(question, "start", (f"model.size={size}", f"data.workers={workers}"), name=name)


def measure(points: list[Point], folder: Path) -> dict[str, Any]:
    """Return the figures of these points, reusing those in the folder's file, which keeps all."""
    file = folder / "growth.json"
    kept = growth_kept.read(file)
    known = {_words(row["key"]): row["figures"] for row in kept}
    for point in points:
        growth_kept.refuse_other(point.kind, point.name, known.get(_words(point.key())), file)
    rows = []
    with ProgressBars() as bars:
        task = bars.task("points", len(points))
        for number, point in enumerate(points):
            key = point.key()
            words = _words(key)
            task.to(number, f"{point.question} {point.name}".strip())
            if words not in known:
                known[words] = _measured(point, folder)
            row = {"question": point.question, "name": point.name, "key": key, "figures": known[words]}
            rows.append(row)
            if row not in kept:
                kept.append(row)
                with replacing(file) as writing:
                    save(writing, described() | {"points": kept})
        task.to(len(points))
    return described() | {"points": rows}


def _words(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _measured(point: Point, folder: Path) -> dict[str, Any]:
    """Measure a point and return its figures. Raises RuntimeError where a process fails."""
    with tempfile.TemporaryDirectory(prefix="point-", dir=folder) as name:
        scratch = Path(name)
        module, words = "growth_point", [point.kind, str(scratch), *point.overrides]
        variables = {}
        if point.kind == "start":
            module, words = "growth_start", [str(scratch), *_prepared_start(point, scratch, folder)]
            variables = {"PYTHONPROFILEIMPORTTIME": "1"} if point.name == "imports" else {}
        log = scratch / "output.log"
        command = [sys.executable, "-m", f"tgm_scale.benchmarks.{module}", *words]
        with LocalRun(command, point.processes, log, variables) as life:
            codes = life.wait()
            began = life.began
        said = log.read_text(errors="replace", encoding="utf-8").splitlines()
        if any(codes):
            raise RuntimeError(f"{point.question}, {' '.join(point.overrides)}: exit codes {codes}: {said[-1:]}")
        figures, *others = [json_object(scratch / f"{rank}.json") for rank in range(point.processes)]
        for other in others:
            figures["peak_MB"] = max(figures["peak_MB"], other["peak_MB"])
        if point.kind == "start":
            figures["clock"] = {part: at - began for part, at in figures["clock"].items()}
        if point.name == "imports":
            figures["imports"] = dict(_imports(said))
        return figures


def _prepared_start(point: Point, scratch: Path, folder: Path) -> list[str]:
    """Make the corpus of a start and return its overrides; for a cold start, drop the code from the file cache."""
    words = [
        configuration.override("data.shards", folder / "corpus"),
        "data.synthetic={clips: 64}",
        configuration.override("run.dir", scratch / "run"),
        "train.steps=4",
        "log.tensorboard=false",
        *point.overrides,
    ]
    make_synthetic(configuration.load("debug", words).data)
    if point.name == "cold":
        _drop_code()
    return words


def _drop_code() -> None:
    """Drop the code and libraries of this Python from the file cache, so that files not mapped by a running process
    are read from storage again. Only root can drop the whole cache."""
    roots = {*sysconfig.get_paths().values(), str(Path(tgm_scale.__file__).parent)}
    for root in roots:
        for file in Path(root).rglob("*"):
            if file.is_file() and (file.suffix in _COMPILED or ".so." in file.name):
                descriptor = os.open(file, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)


def _imports(lines: list[str]) -> Iterator[tuple[str, float]]:
    """Yield seconds in the modules of each package, the longest first, from the lines of `python -X importtime`."""
    seconds: Counter[str] = Counter()
    for line in lines:
        if (
            line.startswith("import time:")
            and (fields := line.removeprefix("import time:").split("|"))[0].strip().isdigit()
        ):
            seconds[fields[2].strip().partition(".")[0]] += int(fields[0])
    yield from ((name, micro / 1e6) for name, micro in seconds.most_common())
