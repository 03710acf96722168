"""The plan of `shards make` over millions of rows: CPU seconds and peak memory of the planning process.

The rows are generated here in InternVid's format, as a folder of ten files. A tenth of them is planned, then all, each
in its own process, which then makes the pass that yields the clips of all shards."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.data.building.annotation_rows import clock
from tgm_scale.data.building.annotations import Filters, Plan
from tgm_scale.runtime.memory import peak_resident_bytes
from tgm_scale.runtime.progress import ProgressBars

_FILES, _SIZES = 10, (1, 10)  # files, and how many of them to plan
_OF_A_VIDEO = 30  # clips; InternVid's 10 million come from some 300 thousand videos


class Pass(NamedTuple):
    """CPU seconds of a pass over the rows, and peak megabytes of its process after it."""

    name: str
    rows: int
    clips: int
    seconds: float
    peak_mb: float


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.rows < _FILES or options.rows % _FILES or options.clips_per_shard < 1:
        raise ValueError(f"--rows {options.rows}: wanted a multiple of {_FILES}; --clips-per-shard: at least 1")
    found: list[Pass] = []
    print(headline())
    print(table(("pass", "rows", "clips", "CPU s", "peak MB"), []), flush=True)
    with tempfile.TemporaryDirectory() as scratch, ProgressBars() as bars:
        task = bars.task("passes", len(_SIZES))
        files = _make(Path(scratch), options.rows // _FILES)
        for count in _SIZES:
            folder = Path(scratch) / f"of_{count}"
            folder.mkdir()
            for file in files[:count]:
                os.link(file, folder / file.name)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found += process.submit(_passes, folder, options.clips_per_shard).result()
            task.advance()
    return {"plan": [one._asdict() for one in found]}


def _make(folder: Path, rows: int) -> list[Path]:
    """Write the files of rows, each row a different clip, and return their paths."""
    files = [folder / f"{number}.jsonl" for number in range(_FILES)]
    for number, file in enumerate(files):
        with open(file, "w", encoding="utf-8") as lines:
            lines.writelines(map(_line, range(number * rows, (number + 1) * rows)))
    return files


def _line(number: int) -> str:
    video, place = divmod(number, _OF_A_VIDEO)
    times = f'"Start_timestamp": "{clock(9000 * place)}", "End_timestamp": "{clock(9000 * place + 8733)}"'
    caption = f"a man in a red shirt walks along street number {number}"
    scores = '"UMT_Score": 0.41, "Aesthetic_Score": 4.75'
    return f'{{"YoutubeID": "v{video:010d}", {times}, "Caption": "{caption}", {scores}}}\n'


def _passes(folder: Path, clips_per_shard: int) -> list[Pass]:
    found = [_printed("none", 0, 0, 0.0)]
    began = time.process_time()
    plan = Plan(folder, Filters(), clips_per_shard)
    found.append(_printed("plan", plan.rows, plan.clips, time.process_time() - began))
    began = time.process_time()
    clips = sum(map(len, plan.clips_of(range(plan.shards))))
    found.append(_printed("clips", plan.rows, clips, time.process_time() - began))
    return found


def _printed(name: str, rows: int, clips: int, seconds: float) -> Pass:
    one = Pass(name, rows, clips, seconds, peak_resident_bytes() / 1e6)
    print(f"| {name} | {rows:,} | {clips:,} | {seconds:.1f} | {one.peak_mb:.0f} |", flush=True)
    return one
