"""`tgm-scale shards caption`: captions for clips."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, add_rewriting

EXAMPLES = """examples:
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


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shards", required=True, metavar="DIR", help="folder, pattern or list, as data.shards")
    add("--output", type=Path, required=True, metavar="DIR", help="made if missing; not the shards' own folder")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--blip2", type=Path, metavar="DIR", help="a BLIP-2 folder in the Hugging Face layout")
    source.add_argument("--classes", metavar="KEY", help="where the json has the class's name, such as label")
    add("--language-model", type=Path, metavar="DIR", help="with --classes: a causal language model's folder")
    add("--templates", type=Path, metavar="FILE", help="with --classes: lines with {} for the class's name")
    add("--beams", type=int, default=1, metavar="N", help="width of BLIP-2's search (default %(default)s, greedy)")
    add_rewriting(parser)


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.corpora.captions import caption

    return caption(options)


COMMAND = Command(
    "shards caption",
    "write captions for clips: from frames with BLIP-2, or from names of classes",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="finished shards are kept, the same command resumes",
    former="caption_clips",
)
