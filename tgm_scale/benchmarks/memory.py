"""Memory of the loader over many clips: private memory of this process and its workers."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from tgm_scale.benchmarks import pipelines
from tgm_scale.benchmarks.clips import VideoFormat, make_shards
from tgm_scale.benchmarks.machine import headline, resident_mb, table
from tgm_scale.data.shards.opening import open_corpus
from tgm_scale.runtime.progress import ProgressBars

FORMAT, SIZE = VideoFormat(64, 48, seconds=1.0), 32  # small, so that 100,000 clips take some 6 minutes of a core


def run(options: argparse.Namespace) -> dict[str, Any]:
    if min(options.clips, options.every) < 1 or options.workers < 1:
        raise ValueError("--clips, --every and --workers: wanted at least 1")
    rows = []
    print(
        f"{headline()}; clips of {FORMAT.seconds:g} s at {FORMAT.width} x {FORMAT.height}, {options.workers} workers"
    )
    print(table(("clips", "this process, MB", "largest worker, MB"), []), flush=True)
    with tempfile.TemporaryDirectory() as scratch, ProgressBars() as bars:
        folder = make_shards(Path(scratch) / "shards", 64, FORMAT, per_shard=4)
        loading = pipelines.loader(open_corpus(str(folder)), options.workers, size=SIZE)
        clips = pipelines.clips_of(loading)
        task = bars.task("clips", options.clips)
        for done in range(options.every, options.clips + 1, options.every):
            task.advance(sum(islice(clips, options.every)))
            workers = [child.pid for child in multiprocessing.active_children() if child.pid]
            rows.append((done, resident_mb(os.getpid()), max(map(resident_mb, workers))))
            print("| {} | {:.1f} | {:.1f} |".format(*rows[-1]), flush=True)
        clips.close()  # type: ignore[attr-defined]
    half = rows[len(rows) // 2 :]
    growth = {name: 1e5 * _slope([(row[0], row[k]) for row in half]) for k, name in ((1, "process"), (2, "worker"))}
    print(f"growth in the second half, MB per 100,000 clips: {growth['process']:.1f}, worker {growth['worker']:.1f}")
    return {"rows": rows, "growth_mb_per_100000": growth}


def _slope(points: list[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line; 0 for a single point."""
    middle_x, middle_y = (sum(values) / len(points) for values in zip(*points))
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread if spread else 0.0
