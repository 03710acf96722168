"""`tgm-scale masks evaluate`: do masks find the object?"""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, add_overrides, part_names

EXAMPLES = """examples:
  tgm-scale masks evaluate --videos DIR --masks DIR
  tgm-scale masks evaluate --videos DIR --masks DIR --recipes text_guided --scorers value,vv guidance.towers=CLIP
  tgm-scale masks evaluate --videos DIR --masks DIR --config configs/pretrain_vitb.yaml guidance.towers=CLIP \\
      masking.mask_ratio=0.75 --output DIR

For NAME.mp4 the truth is NAME.masks.npz (packed, shape), a folder NAME of pictures (as DAVIS has them; any value but
0 is the object), or NAME.boxes.json (for each frame a list of [left, top, right, bottom]). Captions: captions.json in
the folder of videos, {"NAME": "caption"}; videos without one are left out of text_guided. All recipes hide the same
share, masking.mask_ratio (default 0.75). Videos without a truth, or that cannot be read, are left out and printed by
reason; more of them than data.max_left_out_share stop it.

hidden: share of the object's pixels in hidden tokens. lift: that over the share of tokens hidden; 1 is chance. AUC and
pointing are of the saliency: above 0.5 it points at the object, below at the background. Recipes whose model or
library is missing are named and left out. Exit code: 0 done, 2 a mistake in the command or its input."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR")
    add("--masks", type=Path, metavar="DIR", help="where the truth is (default: beside the videos)")
    add("--captions", type=Path, metavar="FILE", help="default: captions.json in the folder of videos")
    add("--config", metavar="FILE", help="a run's configuration, for its grid, ratio, towers and options")
    add(
        "--recipes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="blanks or commas between (default: all)",
    )
    add("--scorers", nargs="+", action="extend", metavar="NAME", help="of text_guided (default: all)")
    add("--clips", type=int, default=3, metavar="N", help="of each video, evenly spread (default 3)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write figures.json, left_out.jsonl and a picture sheet of each video there",
    )
    add_overrides(parser)


def _run(options: argparse.Namespace) -> int:
    part_names(options, {"recipes": ["all"], "scorers": ["all"]})
    from tgm_scale.evaluation.masks.evaluate import evaluate

    return evaluate(options)


COMMAND = Command(
    "masks evaluate",
    "every recipe's masks evaluated on videos whose objects people annotated",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="nothing is lost that was written",
    former="evaluate_masks",
)
