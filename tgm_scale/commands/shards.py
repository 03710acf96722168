"""`tgm-scale shards ...`: make shards, check them, caption them, and copy them with a relevance map for each clip."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from tgm_scale.commands.command import Command, Once, add_rewriting, later, number, positive
from tgm_scale.data.defaults import CRF, GOP, SHORT_SIDE

_RESUMES = "finished shards are kept, the same command resumes"

_MAKE = """examples:
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

_CHECK = """examples:
  tgm-scale shards check --shards data/internvid
  tgm-scale shards check --shards 's3://bucket/part/*.tar' --samples 2000 --sheet sheet.png
  tgm-scale shards check --shards videos.txt --frames 16 --report report.json

Shards from elsewhere (video2dataset, a tar of your own) get their indices here, so that the first run need not build
them. A list of video files is checked the same way. Of each sample some frames are decoded; --samples draws a part of
a large corpus. All members are read and compared with the sums in the index; without --samples, an index that has no
sums gets them. Doubles are videos with the same bytes. Exit code: 0 fit to train on; 1 a shard is cut, empty or cannot
be read, or more samples than --max-broken are broken, or were left out; 2 a mistake in the command or its input."""

_CAPTION = """examples:
  tgm-scale shards caption --shards DIR --output DIR --blip2 models/blip2-opt-2.7b
  tgm-scale shards caption --shards videos.txt --output DIR --blip2 DIR --task $SLURM_PROCID --tasks $SLURM_NTASKS
  tgm-scale shards caption --shards DIR --output DIR --classes label
  tgm-scale shards caption --shards DIR --output DIR --classes label --language-model models/llama-8b

--blip2 describes 3 uniformly spaced frames of each clip, which gives 3 captions (TGM, arXiv 2408.00759, section 4).
--classes sees no picture: the class name in each sample's json (a key, or a dotted path) goes through templates, or a
language model describes it once for each class. --templates FILE holds one template a line, with {} for the name.

The result is new shards: all that the old ones hold, the captions in the json, and what was there as old_captions. A
list of video files becomes shards here. A video that cannot be decoded is copied as it is and counted; what could not
be opened is printed, and named in OUTPUT/left_out.jsonl. Stopped at any
moment, the same command resumes with the first unfinished shard; --task N --tasks M shares the shards out, one process
a GPU. Exit code: 0 done, 2 a mistake in the command or its input."""

_CACHE = """examples:
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


def _add_make(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--annotations", required=True, action=Once, metavar="FILE", help="a file, a folder or a pattern of files")
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


def _add_check(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, action=Once, metavar="DIR", help="folder, pattern or list, as data.shards")
    add("--samples", type=int, metavar="N", help="look at N samples drawn from all (default: all)")
    add("--frames", type=int, default=3, metavar="N", help="frames of each to decode (default %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="processes (default %(default)s)")
    add("--max-broken", type=number, default=0.1, metavar="X", help="share that is tolerated (default %(default)s)")
    add("--sheet", type=Path, metavar="FILE", help="write a picture of 48 samples there, .png or .jpg")
    add("--report", type=Path, metavar="FILE", help="write all figures and the names of all bad samples there, JSON")


def _add_caption(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, action=Once, metavar="DIR", help="folder, pattern or list, as data.shards")
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not the shards' own folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--blip2", type=Path, metavar="DIR", help="a BLIP-2 folder in the Hugging Face layout")
    source.add_argument("--classes", metavar="KEY", help="where the json has the class's name, such as label")
    add("--language-model", type=Path, metavar="DIR", help="with --classes: a causal language model's folder")
    add("--templates", type=Path, metavar="FILE", help="with --classes: lines with {} for the class's name")
    add("--beams", type=int, default=1, metavar="N", help="width of BLIP-2's search (default %(default)s, greedy)")
    add_rewriting(parser)


def _add_cache(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, action=Once, metavar="DIR", help="folder or pattern of shards, as data.shards")
    add("--towers", required=True, metavar="DIR", help="CLIP or SigLIP folder or 'small', as guidance.towers")
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not the shards' own folder")
    add("--scorer", default="value", metavar="NAME", help="raw, value (default) or vv, as guidance.scorer")
    add("--resolution", type=int, metavar="N", help="side that the tower sees, as guidance.resolution")
    add("--every", type=number, default=0.25, metavar="S", help="seconds between scored frames (default 0.25)")
    add_rewriting(parser)


COMMANDS = [
    Command(
        "shards make",
        "make indexed WebDataset shards from annotations and a folder of videos",
        _add_make,
        later("tgm_scale.corpora.make", "make"),
        _MAKE,
        when_stopped=_RESUMES,
        former="make_shards",
    ),
    Command(
        "shards check",
        "look through shards: counts, captions, broken and double videos, pictures",
        _add_check,
        later("tgm_scale.corpora.check", "check"),
        _CHECK,
        when_stopped="nothing is lost that was written",
        former="check_shards",
    ),
    Command(
        "shards caption",
        "write captions for clips: from frames with BLIP-2, or from names of classes",
        _add_caption,
        later("tgm_scale.corpora.captions", "caption"),
        _CAPTION,
        when_stopped=_RESUMES,
        former="caption_clips",
    ),
    Command(
        "shards cache",
        "copy shards with each caption's relevance added: no image tower in training",
        _add_cache,
        later("tgm_scale.corpora.relevance", "cache"),
        _CACHE,
        when_stopped=_RESUMES,
        former="cache_relevance",
    ),
]
