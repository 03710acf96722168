"""Make a corpus of moving shapes as shards: H.264 clips, captions, and the truth of every pixel."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import fields
from pathlib import Path

from tgm_scale.runtime import command
from tgm_scale.runtime.progress import ProgressBars

EXAMPLES = """examples:
  python tools/make_synthetic.py --output runs/shapes --clips 1000
  python tools/make_synthetic.py --output runs/movers --clips 1000 --mode one_mover --seed 1
  python tools/make_synthetic.py --output runs/large --clips 10000 --size 112 --frames 32 --difficulty 1

named: a caption names one of three objects; one distractor has its colour, another its shape.
one_mover: one object; its motion is to be read from the pixels. Each sample's json holds captions, shape, colour and
motion of every object, its box and visible pixels in each frame. The same seed gives the same clips, whatever the
number of clips and workers. Exit code: 0 done, 2 a mistake in the command."""


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not one with shards in it")
    add("--clips", type=int, required=True)
    add("--mode", default="named", help="named (default) or one_mover")
    add("--seed", type=int, default=0)
    add("--size", type=int, default=64, help="side in pixels, even (default %(default)s)")
    add("--frames", type=int, default=16, help="frames a clip (default %(default)s)")
    add("--fps", type=float, default=12.0, help="frames a second (default %(default)s)")
    add("--difficulty", type=float, default=0.5, help="0 plain to 1 hard (default %(default)s)")
    add("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    add("--clips-per-shard", type=int, default=250, help="default %(default)s")
    options = parser.parse_args(arguments)
    return command.exit_code("make_synthetic", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.demo.corpus.make import SyntheticSpec, make_corpus  # late: --help does without torch

    began = time.monotonic()
    spec = SyntheticSpec(**{field.name: getattr(options, field.name) for field in fields(SyntheticSpec)})
    with ProgressBars() as bars:
        task = bars.task("clips", options.clips)
        make_corpus(options.output, options.clips, spec, options.workers, options.clips_per_shard, progress=task.to)
    seconds = time.monotonic() - began
    size = sum(shard.stat().st_size for shard in options.output.glob("*.tar"))
    print(f"{options.output}: {options.clips} clips, {size / 1e6:.1f} MB, {seconds:.0f} s, {options.workers} workers")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
