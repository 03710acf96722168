"""Software work per rank, done for all ranks of a run on one machine: seconds, files, bytes by number of ranks.

Nothing is trained: the order of a step, heartbeats, a rank that searches for a hung one, `status`, a checkpoint of the
tiny model and a start's check of it, by the code of a run. The work of all ranks together may grow with their number;
quadratic growth would stop a large run."""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tgm_scale import config as configuration
from tgm_scale.assembly import parts
from tgm_scale.assembly.run_plan import shape_of
from tgm_scale.benchmarks import checkpoint, order
from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.checkpoints.checkpoint import Progress, Reader
from tgm_scale.checkpoints.folders import folder_of
from tgm_scale.checkpoints.saver import Pending
from tgm_scale.checkpoints.share import RankShare
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.engine import build as engine
from tgm_scale.runs.bottleneck import read_ranks
from tgm_scale.runs.metrics import Metrics
from tgm_scale.runtime.distributed import ProcessInfo, find_process
from tgm_scale.runtime.progress import ProgressBars
from tgm_scale.training.watchdog import NAMING, Watchdog

_SHARDS, _CLIPS = 200, 1000  # shards of the corpus whose order is computed; clips per shard
_STEP = 1000


@dataclass(frozen=True)
class Work:
    """Work that all ranks together do once: seconds of a core, files opened or written, bytes."""

    name: str
    seconds: float
    files: int
    bytes: int


def run(options: argparse.Namespace) -> dict[str, Any]:
    ranks = _numbers(options.ranks)
    process = find_process()
    if process.world_size > 1:
        raise ValueError("this benchmark is of one process: start it without torchrun")
    config = configuration.load(options.config, options.overrides)
    found: dict[int, list[Work]] = {}
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
    engine.start_processes(process)
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as scratch, ProgressBars() as bars:
            folder, made = Path(scratch), checkpoint.engine_of(config, process)
            (folder / "corpus").mkdir()
            corpus = order.make_corpus(folder / "corpus", _SHARDS, _CLIPS)
            facts = parts.checkpoint_metadata(config, shape_of(config))
            task = bars.task("ranks", sum(ranks))
            for count in ranks:
                root = folder / str(count)
                root.mkdir()
                found[count] = [_order(corpus, count), *_heartbeats(root, count), _metrics(root, count)]
                found[count] += _checkpoint(root, count, made, facts)
                task.advance(count)
    finally:
        engine.stop_processes()
    growth = _growth(found)
    print(f"{headline()}; of all ranks together, seconds of a core")
    _print(found, growth)
    return {"ranks": {str(n): [vars(work) for work in works] for n, works in found.items()}, "growth": growth}


def _numbers(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= 100_000 for word in words):
        raise ValueError(f"--ranks {text}: wanted numbers of ranks from 1 to 100000, such as 8,64,512")
    return sorted({int(word) for word in words})


def _of(rank: int, ranks: int) -> ProcessInfo:
    return ProcessInfo(rank, ranks, 0, torch.device("cpu"))


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()  # of all threads: other processes may use the cores, too
    made = work()
    return time.process_time() - began, made


def _order(folder: Path, ranks: int) -> Work:
    """Locate each clip of a step: every rank's loader is created and asked."""

    def places() -> set[Any]:
        seen = []
        for rank in range(ranks):
            loader = order.loader_of(corpus, rank, ranks, _STEP)
            seen += [loader.samples.mixture.locate(position) for position in loader.positions()]
        assert len(set(seen)) == len(seen), "ranks share a clip"
        return set(seen)

    corpus = open_corpus(str(folder))
    seconds, found = _timed(places)
    return Work("order of a step", seconds, len({place.shard for place in found}), 0)


def _heartbeats(root: Path, ranks: int) -> list[Work]:
    watchdogs: list[Watchdog] = []

    def beat() -> None:
        for rank in range(ranks):
            watchdogs.append(Watchdog(root, _of(rank, ranks), hang_seconds=50.0))
            watchdogs[-1].at(_STEP, "data")
            watchdogs[-1].end("running")  # its thread ends, after the last heartbeat

    seconds, _ = _timed(beat)
    files = list((root / "ranks").iterdir())
    beats = Work("heartbeat, twice", seconds, 2 * len(files), 2 * sum(file.stat().st_size for file in files))
    seconds, _ = _timed(lambda: watchdogs[0].stalled_ranks(earlier={}))
    readers = min(ranks, NAMING)
    look = Work("a hang: who is waited for", readers * seconds, readers * (ranks - 1), 0)
    seconds = _timed(lambda: read_ranks(root, ranks))[0]
    return [beats, look, Work("status: all heartbeats", seconds, ranks, 0)]


def _metrics(root: Path, ranks: int) -> Work:
    """Measure a row. Only rank 0 writes rows, and their figures on the ranks are sums."""
    row = {"step": _STEP, "samples": _STEP * ranks, "loss": 0.5, "grad_norm": 1.0, "skipped_samples": ranks}
    metrics = Metrics(root, 0, tensorboard=False)
    seconds, _ = _timed(lambda: metrics.write(row))
    metrics.close()
    return Work("metrics of a step", seconds, 1, (root / "metrics.jsonl").stat().st_size)


def _checkpoint(root: Path, ranks: int, made: Any, facts: dict[str, Any]) -> list[Work]:
    def save() -> None:
        entries = []
        for rank in range(ranks):
            share = RankShare(made, _of(rank, ranks))
            pending = Pending(root, Progress(step=_STEP, updates=_STEP), facts, _of(rank, ranks), share.files)
            if rank == 0:
                first.append(pending)
                assert pending.make_folder() is None
            pending.start(dict(share))
            entries.append(pending.wait())
        assert first[0].commit(entries) is None

    first: list[Pending] = []
    seconds, _ = _timed(save)
    folder = folder_of(root, _STEP)
    files = list(folder.iterdir())
    saved = Work("checkpoint written", seconds, len(files), sum(file.stat().st_size for file in files))
    seconds, _ = _timed(lambda: Reader(folder))
    checked = Work("checkpoint looked at by rank 0", seconds, len(files), 0)

    def resume() -> int:
        """Return the files that a rank opens to read every tensor, as at ZeRO 0 and 3; the others do the same."""
        reader = Reader(folder, checked=False)
        for name in reader.names():
            reader.tensor(name)
        return reader.opened

    seconds, opened = _timed(resume)
    return [saved, checked, Work("checkpoint read by all ranks", ranks * seconds, ranks * opened, 0)]


def _growth(found: dict[int, list[Work]]) -> dict[str, dict[str, float]]:
    """Return each figure's exponent of growth by ranks, between the two largest numbers of ranks."""
    if len(found) < 2:
        return {}
    few, many = sorted(found)[-2:]
    step = math.log(many / few)
    growth = {}
    for before, after in zip(found[few], found[many]):
        pairs = {name: (getattr(before, name), getattr(after, name)) for name in ("seconds", "files", "bytes")}
        growth[after.name] = {name: math.log(b / a) / step for name, (a, b) in pairs.items() if a and b}
    return growth


def _print(found: dict[int, list[Work]], growth: dict[str, dict[str, float]]) -> None:
    for figure, shown in (("seconds", "{:.3g}"), ("files", "{:,}"), ("bytes", "{:,}")):
        works = [[getattr(work, figure) for work in column] for column in found.values()]
        names = [work.name for work in next(iter(found.values()))]
        rows = []
        for name, *values in zip(names, *works):
            grown = growth.get(name, {}).get(figure)
            if any(values):
                rows.append((name, *map(shown.format, values), "" if grown is None else f"{grown:.2f}"))
        print(table((figure, *(f"{count:,} ranks" for count in found), "grows by ranks to the"), rows))
