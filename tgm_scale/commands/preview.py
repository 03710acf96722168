"""`tgm-scale preview`: what masking would hide in clips of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, add_overrides, part_names, positive
from tgm_scale.preview import RECIPES

EXAMPLES = """examples:
  tgm-scale preview data.shards=videos guidance.towers=CLIP --output page.html
  tgm-scale preview data.shards=clips.csv data.root=videos guidance.towers=CLIP --keys a.mp4,b.mp4 --output page.html
  tgm-scale preview --config configs/pretrain_vitb.yaml data.shards=shards guidance.towers=CLIP --output page.html
  tgm-scale preview data.shards=videos --recipes tube motion_guided --output page.html   # without captions
  tgm-scale preview --checkpoint runs/look --output page.html   # its data and recipe, and reconstructions

One HTML page that needs nothing beside it: of each clip the frames, the caption, the relevance of each scorer, what
each recipe hides and what the encoder sees; over all clips, whether captions change the masks, and towards what they
say. Clips, crops, captions and masks are those with which a run of the same configuration and seed begins. Clips that
cannot be used are named on the page and here. Without --config: 16 frames of 224 pixels, a ratio of 0.6; every key of
a run's configuration can be set. Exit code: 0 done, 2 a mistake in the command or its input."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="FILE", help="the page, such as page.html; written over")
    add("--config", metavar="FILE", help="a run's configuration, for its data, clips, towers, ratio and options")
    add("--checkpoint", metavar="RUN", help="run folder or checkpoint: its configuration, and what it reconstructs")
    add("--clips", type=positive, default=12, metavar="N", help="how many are shown (default %(default)s)")
    add("--keys", action="append", metavar="NAMES", help="these clips, by name, commas between")
    add(
        "--recipes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help=f"blanks or commas between; or all (default: the configuration's, {' '.join(RECIPES)})",
    )
    add("--seed", type=int, metavar="N", help="run.seed: which clips, crops, captions and masks (default 0)")
    add_overrides(parser)


def _run(options: argparse.Namespace) -> int:
    part_names(options, {"recipes": RECIPES} if options.recipes else {})
    options.keys = [key for names in options.keys or [] for key in names.split(",") if key]
    from tgm_scale.preview.command import preview

    return preview(options)


COMMAND = Command(
    "preview",
    "a page of what masking hides in clips of your own, before a run",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="no page was written",
)
