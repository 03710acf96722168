"""Millions of clips on a thousand ranks, all simulated in this process: opening, positions, samples, resuming.

The corpus is real: one tar of 1,000 samples of 512 bytes, linked under one name per shard. Every rank's loader is
created and asked for the positions of a step; together they must be the step's positions, each once."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import tarfile
import tempfile
import time
import tracemalloc
from pathlib import Path
from statistics import median
from typing import Any

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.contracts import BatchLayout, Grid
from tgm_scale.data.loading.loader import ClipLoader
from tgm_scale.data.loading.samples import Samples
from tgm_scale.data.loading.sampling import Sampling
from tgm_scale.data.shards import index_cache
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.progress import ProgressBars

_MICRO = 8
_STEPS = (10, 1_000_000)
_TIMES = 15


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.clips % options.shards or min(options.clips, options.shards, options.ranks) < 1:
        raise ValueError(f"--clips {options.clips} --shards {options.shards}: wanted a whole number of clips a shard")
    with tempfile.TemporaryDirectory() as scratch, ProgressBars() as bars:
        folder = make_corpus(Path(scratch), options.shards, options.clips // options.shards)
        figures = _opening(folder) | _positions(folder, options.ranks, bars) | _resuming(folder, options.ranks)
    print(headline())
    print(f"{options.clips:,} clips in {options.shards:,} shards, {options.ranks:,} ranks of {_MICRO} clips a step")
    print(table(("what", "figure"), [(name.replace("_", " "), f"{value:,.4g}") for name, value in figures.items()]))
    return figures


def make_corpus(folder: Path, shards: int, samples: int) -> Path:
    first = folder / "00000.tar"
    with tarfile.open(first, "w") as tar:
        for number in range(samples):
            info = tarfile.TarInfo(f"c{number:06d}.mp4")
            info.size = 512
            tar.addfile(info, io.BytesIO(bytes(512)))
    index_cache.load(str(first))
    for number in range(1, shards):
        os.link(first, folder / f"{number:05d}.tar")
        os.link(folder / "00000.index.jsonl", folder / f"{number:05d}.index.jsonl")
    return folder


def _opening(folder: Path) -> dict[str, float]:
    """Measure opening: the first one reads every index and writes the catalogue; later ones read that."""
    began = time.perf_counter()
    open_corpus(str(folder))
    first = time.perf_counter() - began
    seconds = [_timed(lambda: open_corpus(str(folder))) for _ in range(5)]
    tracemalloc.start()
    corpus = open_corpus(str(folder))
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    loader = loader_of(corpus, 0, 1, 0)
    return {
        "first_opening_seconds": first,
        "opening_seconds": median(seconds),
        "opening_holds_MB": held / 1e6,
        "opening_peak_MB": most / 1e6,
        "state_bytes": len(json.dumps({"step": _STEPS[1]})),
        "sent_to_a_worker_kB": len(pickle.dumps(loader.samples)) / 1e3,
    }


def loader_of(corpus: Corpus, rank: int, ranks: int, step: int) -> ClipLoader:
    samples = Samples.in_order([corpus], Sampling(16, 4, 224, Grid(8, 14, 14), seed=0))
    return ClipLoader(samples, BatchLayout(ranks * _MICRO, _MICRO, rank, ranks), range(step, step + 1), workers=0)


def _positions(folder: Path, ranks: int, bars: ProgressBars) -> dict[str, float]:
    """Locate all ranks' clips of one step. A rank permutes the windows of its own positions."""
    corpus = open_corpus(str(folder))
    found, cold, warm = [], [], []
    task = bars.task("ranks", ranks)
    for rank in range(ranks):
        loader = loader_of(corpus, rank, ranks, _STEPS[1])
        positions = list(loader.positions())
        cold.append(_timed(lambda: loader.samples.mixture.locate(positions[0])))  # noqa: B023 (called at once)
        began = time.perf_counter()
        found += [loader.samples.mixture.locate(position) for position in positions]
        warm.append((time.perf_counter() - began) / len(positions))
        task.advance()
    assert len(set(found)) == len(found) == ranks * _MICRO, "ranks share a clip, or have too few"
    lookups = [_timed(lambda: corpus.sample(place.shard, place.row)) for place in found[:2000]]  # noqa: B023
    return {
        "first_position_of_a_rank_us": 1e6 * median(cold),
        "position_us": 1e6 * median(warm),
        "sample_lookup_us": 1e6 * median(lookups),
        "index_load_us": 1e6 * median(_timed(lambda k=k: index_cache.load(corpus.shards[k])) for k in range(20)),
    }


def _resuming(folder: Path, ranks: int) -> dict[str, float]:
    """Measure from an open corpus to the location of a step's first clip; the two steps alternate."""
    corpus = open_corpus(str(folder))
    seconds: dict[int, list[float]] = {step: [] for step in _STEPS}

    def resume(step: int) -> None:
        loader = loader_of(corpus, ranks - 1, ranks, step)
        loader.samples.mixture.locate(next(loader.positions()))

    for _ in range(_TIMES):
        for step in _STEPS:
            seconds[step].append(_timed(lambda: resume(step)))  # noqa: B023
    return {f"resume_at_step_{step}_ms": 1e3 * median(seconds[step]) for step in _STEPS}


def _timed(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
