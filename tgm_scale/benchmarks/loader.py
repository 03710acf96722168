"""Clips per second of the loader, with and without workers, of the bare decoder, and of WebDataset and SPDL."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from tgm_scale.benchmarks import pipelines, spdl
from tgm_scale.benchmarks.clips import VideoFormat, make_shards
from tgm_scale.benchmarks.machine import cpu_seconds, headline, table
from tgm_scale.data.shards.index import Corpus
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.progress import ProgressBars

_LOOK, _LOOKS, _IDLE = 0.2, 100, 0.1  # seconds between checks for idle pipelines, most checks, share of a core


class Pipeline(NamedTuple):
    """Pipeline of clips: its stream, and how many of its clips may be ready before they are requested."""

    name: str
    clips: Iterator[int]
    prefetched: int
    loops: int = 1  # number of bare loops to compare it with


class Turn(NamedTuple):
    wall: float  # seconds per clip
    cpu: float  # CPU seconds per clip, of this process and its workers


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes = [_size(text) for text in options.sizes.split(",")]
    gops, workers, repeats = (_numbers(options, name) for name in ("gops", "workers", "repeats"))
    if options.turn % pipelines.BATCH:
        raise ValueError(f"--turn {options.turn}: wanted a multiple of the batch of {pipelines.BATCH} clips")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores
    print(f"{headline()}; 16 frames, stride 4, to 224 x 224; clips of 10 s at 30 frames/s")
    if why := spdl.missing():
        print(f"without spdl: {why} (pip install spdl, and ffmpeg's libraries of the system)")
    rows: list[dict[str, Any]] = []
    repeated: list[tuple[str, list[Turn]]] = []
    with tempfile.TemporaryDirectory() as scratch, ProgressBars() as bars:
        made = [(size, gop) for size in sizes for gop in gops]
        task = bars.task("corpora", len(made))
        for size, gop in made:
            folder = (options.folder or Path(scratch)) / f"{size[0]}x{size[1]}_gop{gop}_{options.clips}"
            corpus = open_corpus(str(make_shards(folder, options.clips, VideoFormat(*size, gop))))
            rows += _rows(f"{size[0]}x{size[1]}", gop, _compare(_candidates(corpus, workers), options))
            if not repeated:
                repeated = [(pipeline.name, turns) for pipeline, turns in _compare(_repeats(corpus, repeats), options)]
            task.advance()
    _show(rows)
    _show_repeats(repeated)
    return {"loader": rows, "repeats": [{"repeats": name, **_figures(turns)} for name, turns in repeated]}


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ValueError(f"--sizes {text}: wanted WIDTHxHEIGHT, such as 320x240")
    return int(width), int(height)


def _numbers(options: argparse.Namespace, name: str) -> list[int]:
    text = getattr(options, name)
    if not all(part.isdigit() and int(part) for part in text.split(",")):
        raise ValueError(f"--{name} {text}: wanted numbers from 1 on, such as 1,2,4")
    return [int(part) for part in text.split(",")]


def _candidates(corpus: Corpus, workers: list[int]) -> list[Callable[[], Pipeline]]:
    def ours(count: int) -> Pipeline:
        loading = pipelines.loader(corpus, count)
        clips, prefetched = pipelines.clips_of(loading), count * loading.prefetch
        return Pipeline(f"loader, {count} workers", clips, prefetched, max(count, 1))

    def theirs(count: int) -> Pipeline:
        clips = pipelines.with_webdataset(corpus, count)
        return Pipeline(f"webdataset, {count} workers", clips, count * 4, max(count, 1))

    def spdls(count: int) -> Pipeline:
        prefetched = spdl.ahead(count) if count else 0
        return Pipeline(f"spdl, {count} threads", spdl.clips_of(corpus, count), prefetched, max(count, 1))

    def loops(count: int) -> Pipeline:
        return Pipeline(_bare(count), pipelines.loops(corpus, count), 0, count)

    candidates: list[Callable[[], Pipeline]] = [
        lambda: Pipeline("frames", pipelines.frames(corpus), 0),
        lambda: Pipeline(_bare(1), pipelines.bare(corpus), 0),
    ]
    for count in (0, *workers):
        candidates += [partial(loops, count)] if count > 1 else []
        candidates += [partial(ours, count), partial(theirs, count)]
        candidates += [] if spdl.missing() else [partial(spdls, count)]
    return candidates


def _bare(loops: int) -> str:
    return "bare" if loops == 1 else f"bare, {loops} loops"


def _repeats(corpus: Corpus, repeats: list[int]) -> list[Callable[[], Pipeline]]:
    def one(count: int) -> Pipeline:
        return Pipeline(str(count), pipelines.clips_of(pipelines.loader(corpus, 0, count)), 0)

    return [partial(one, count) for count in repeats]


def _compare(
    candidates: list[Callable[[], Pipeline]], options: argparse.Namespace
) -> list[tuple[Pipeline, list[Turn]]]:
    """Return the turns of each pipeline. They alternate, so that other load on the machine slows all of them
    equally."""
    started = [pipeline() for pipeline in candidates]
    turns: list[list[Turn]] = [[] for _ in started]
    for _ in range(options.turns):
        for pipeline, seen in zip(started, turns):
            _settle()
            _take(pipeline.clips, pipeline.prefetched + pipelines.BATCH)  # prefetched clips, and a cold cache
            before, began = _cpu(), time.perf_counter()
            _take(pipeline.clips, options.turn)
            wall = time.perf_counter() - began
            seen.append(Turn(wall / options.turn, (_cpu() - before) / options.turn))
    for pipeline in started:
        pipeline.clips.close()  # type: ignore[attr-defined]
    return list(zip(started, turns))


def _settle() -> None:
    """Wait, for a few seconds, until no pipeline decodes ahead any more: it would take cores from the next one, and
    its threads count as this process's own time."""
    for _ in range(_LOOKS):
        before = _cpu()
        time.sleep(_LOOK)
        if _cpu() - before < _IDLE * _LOOK:
            return


def _take(clips: Iterator[int], count: int) -> None:
    whole = -(-count // pipelines.BATCH) * pipelines.BATCH
    for _ in itertools.islice(clips, whole):
        pass


def _cpu() -> float:
    """Return CPU seconds so far of this process and all its workers; those of other pipelines are idle meanwhile."""
    return cpu_seconds([os.getpid(), *(child.pid for child in multiprocessing.active_children() if child.pid)])


def _figures(turns: list[Turn]) -> dict[str, float]:
    return {"clips_per_second": 1 / median(t.wall for t in turns), "cpu_ms": 1000 * median(t.cpu for t in turns)}


def _rows(size: str, gop: int, compared: list[tuple[Pipeline, list[Turn]]]) -> list[dict[str, Any]]:
    """Return figures of each pipeline. Ratios are medians over turns: `of_bare_wall`, its clips/s over those of as
    many bare loops as it has workers, and `of_bare_cpu`, the loops' CPU time per clip over its own."""
    seen = {pipeline.name: turns for pipeline, turns in compared}
    rows = []
    for pipeline, turns in compared:
        pairs = list(zip(seen[_bare(pipeline.loops)], turns))
        figures = {
            **_figures(turns),
            "of_bare_wall": median(bare.wall / turn.wall for bare, turn in pairs),
            "of_bare_cpu": median(bare.cpu / turn.cpu for bare, turn in pairs),
        }
        rows.append({"size": size, "gop": gop, "way": pipeline.name, **figures})
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    of_bare = ("clips/s of bare", "clips/CPU second of bare")
    header = ("clips", "GOP", "way", "clips/s", "CPU ms a clip", *of_bare)
    print(
        table(
            header,
            [
                (
                    row["size"],
                    row["gop"],
                    row["way"],
                    f"{row['clips_per_second']:.1f}",
                    f"{row['cpu_ms']:.1f}",
                    f"{row['of_bare_wall']:.2f}",
                    f"{row['of_bare_cpu']:.2f}",
                )
                for row in rows
            ],
        )
    )


def _show_repeats(repeated: list[tuple[str, list[Turn]]]) -> None:
    first = repeated[0][1]
    lines = []
    for name, turns in repeated:
        more = median(one.cpu / turn.cpu for one, turn in zip(first, turns))
        lines.append((name, f"{_figures(turns)['clips_per_second']:.1f}", f"{more:.2f}"))
    print(table(("repeated augmentation", "clips/s", f"clips/CPU second of {repeated[0][0]}"), lines))
