"""`tgm-scale shards make`: InternVid's annotations and a folder of videos to shards."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tgm_scale.commands.command import Command, number, positive
from tgm_scale.data.defaults import CRF, GOP, SHORT_SIDE

EXAMPLES = """examples:
  tgm-scale shards make --annotations internvid.jsonl --videos DIR --output DIR
  tgm-scale shards make --annotations internvid.jsonl --videos DIR --output DIR --min-umt 0.3 --min-seconds 2
  tgm-scale shards make ... --task $SLURM_ARRAY_TASK_ID --tasks 64     in each job of an array (0-63)

Annotations are InternVid's (YoutubeID, Start_timestamp, End_timestamp, Caption, UMT_Score), or have columns file,
start, end, caption, label (times in seconds or HH:MM:SS.mmm; a row without any is the whole file), as JSON Lines, a
JSON array, or a table with commas, tabs, ; or |, each also as .gz. A file is one below --videos, an absolute path, or
a bare name that only one has. A file that is named by id and times is taken as the clip, already cut.

A row is used where it passes all filters; a row that lacks the score a filter asks for is not used. Rows with the
same video and span become captions of one clip. A clip has exactly the frames whose times lie in [start, end), no
sound, and square pixels; smaller videos are scaled up to the short side too. Clips are shuffled over the shards.

Stopped at any moment, the same command resumes where it was and ends with the same bytes. What could not be made, and
why, is printed at the end and listed by name in OUTPUT/report.json; clips that were skipped are not tried again,
but for shards of which no video was found.
Exit code: 0 shards were made, 1 none could be made or the disk failed, 2 a mistake in the command or its input."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--annotations", required=True, metavar="FILE", help="a file, a folder or a pattern of files")
    add(
        "--videos",
        type=Path,
        required=True,
        metavar="DIR",
        help="holds the videos, as YoutubeID.mp4 (mkv, avi, mov, webm) at any depth, or by their paths",
    )
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing")
    add("--min-umt", type=number, metavar="X", help="use captions with a UMT_Score of at least X")
    add("--min-aesthetic", type=number, metavar="X", help="use captions with an Aesthetic_Score of at least X")
    add("--min-seconds", type=number, metavar="S", help="use spans of at least S seconds")
    add("--max-seconds", type=number, metavar="S", help="use spans of at most S seconds")
    add("--short-side", type=_even, default=SHORT_SIDE, metavar="N", help="pixels, even (default %(default)s)")
    add("--gop", type=positive, default=GOP, metavar="N", help="a keyframe every N frames (default %(default)s)")
    add(
        "--crf",
        type=int,
        choices=range(52),
        default=CRF,
        metavar="N",
        help="x264's quality, 0-51 (default %(default)s)",
    )
    add("--clips-per-shard", type=positive, default=1000, metavar="N", help="default 1000, some 0.4 GB")
    add("--workers", type=positive, default=len(os.sched_getaffinity(0)), metavar="N", help="default: one a core")
    add("--task", type=int, default=0, metavar="I", help="which part of the shards to make, 0 to N-1 (default 0)")
    add("--tasks", type=positive, default=1, metavar="N", help="how many such parts there are (default 1)")


def _even(text: str) -> int:
    if (value := positive(text)) % 2:
        raise argparse.ArgumentTypeError(f"{text} is odd; H.264 in yuv420p wants even sides")
    return value


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.corpora.make import make

    return make(options)


COMMAND = Command(
    "shards make",
    "make indexed WebDataset shards from annotations and a folder of videos",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="finished shards are kept, the same command resumes",
    former="make_shards",
)
