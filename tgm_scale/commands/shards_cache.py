"""`tgm-scale shards cache`: relevance maps beside every clip."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, add_rewriting, number

EXAMPLES = """examples:
  tgm-scale shards cache --shards DIR --towers CLIP --output DIR
  tgm-scale shards cache --shards 'DIR/*.tar' --towers CLIP --output DIR --every 0.5 --scorer vv
  tgm-scale shards cache ... --task $SLURM_ARRAY_TASK_ID --tasks 16     in each job of an array (0-15)

Training reads the maps with guidance.cached=true alone, and with the towers, scorer and resolution given here.

Every sample gets a member tgm.npy: maps of its captions over whole frames, float16, on the tower's grid (392 bytes
each at 14 x 14), with a fingerprint of the towers and settings. Training takes them through its own crops and at
the frame nearest in time; it stops where the fingerprint is not that of its own towers and settings. Online, the tower
sees a clip after the crop, and so at a higher resolution: maps from here are a little coarser.

Stopped at any moment, the same command resumes with the first unfinished shard, and a shard appears whole; --task I
--tasks N share the shards out, one process a GPU, and the bytes do not depend on N. A video that cannot be decoded is
copied without maps and counted; what could not be opened is printed, and named in OUTPUT/left_out.jsonl. Exit code: 0
done, 2 a mistake in the command or its input."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, metavar="DIR", help="folder or pattern of shards, as data.shards")
    add("--towers", required=True, metavar="DIR", help="CLIP or SigLIP folder or 'small', as guidance.towers")
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not the shards' own folder")
    add("--scorer", default="value", metavar="NAME", help="raw, value (default) or vv, as guidance.scorer")
    add("--resolution", type=int, metavar="N", help="side that the tower sees, as guidance.resolution")
    add("--every", type=number, default=0.25, metavar="S", help="seconds between scored frames (default 0.25)")
    add_rewriting(parser)


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.corpora.relevance import cache

    return cache(options)


COMMAND = Command(
    "shards cache",
    "copy shards with each caption's relevance added: no image tower in training",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="finished shards are kept, the same command resumes",
    former="cache_relevance",
)
