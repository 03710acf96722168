"""`tgm-scale shards check`: what is in shards, and whether it is fit to train on."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, number

EXAMPLES = """examples:
  tgm-scale shards check --shards data/internvid
  tgm-scale shards check --shards 's3://bucket/part/*.tar' --samples 2000 --sheet sheet.png
  tgm-scale shards check --shards videos.txt --frames 16 --report report.json

Shards from elsewhere (video2dataset, a tar of your own) get their indices here, so that the first run need not build
them. A list of video files is checked the same way. Of each sample some frames are decoded; --samples draws a part of
a large corpus. All members are read and compared with the sums in the index; without --samples, an index that has no
sums gets them. Doubles are videos with the same bytes. Exit code: 0 fit to train on; 1 a shard is cut, empty or cannot
be read, or more samples than --max-broken are broken, or were left out; 2 a mistake in the command or its input."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, metavar="DIR", help="folder, pattern or list, as data.shards")
    add("--samples", type=int, metavar="N", help="look at N samples drawn from all (default: all)")
    add("--frames", type=int, default=3, metavar="N", help="frames of each to decode (default %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    add("--max-broken", type=number, default=0.1, metavar="X", help="share that is tolerated (default %(default)s)")
    add("--sheet", type=Path, metavar="FILE", help="write a picture of 48 samples there, .png or .jpg")
    add("--report", type=Path, metavar="FILE", help="write all figures and the names of all bad samples there, JSON")


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.corpora.check import check

    return check(options)


COMMAND = Command(
    "shards check",
    "look through shards: counts, captions, broken and double videos, pictures",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="nothing is lost that was written",
    former="check_shards",
)
