"""Evaluations of a checkpoint's frozen features, and of masks."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from tgm_scale.commands.command import Command, Once, add_configuration, add_overrides, part_names

_EVALUATIONS = {
    "knn": (
        "nearest neighbours on a checkpoint's frozen features",
        """examples:
  tgm-scale knn run.dir=runs/knn encoder.checkpoint=runs/pretrain data.train=shards/train data.test=shards/test
  tgm-scale knn --config configs/probe_ucf101.yaml encoder.checkpoint=runs/pretrain neighbours.k=10
""",
    ),
    "probe": (
        "linear or attentive probe on a checkpoint's frozen features",
        """examples:
  tgm-scale probe --config configs/probe_k400.yaml encoder.checkpoint=runs/pretrain data.root=/data/k400
  tgm-scale probe run.dir=runs/p encoder.checkpoint=runs/x data.train=a.csv data.test=b.csv probe.head=attentive
  torchrun --nproc_per_node 8 -m tgm_scale probe --config configs/probe_ssv2.yaml encoder.checkpoint=runs/pretrain
Features are kept in run.dir/features: a stopped or repeated evaluation resumes from them.
""",
    ),
    "retrieve": (
        "text-to-video retrieval and back, or zero-shot classes, by a joint model",
        """examples:
  tgm-scale retrieve run.dir=runs/r encoder.checkpoint=runs/pretrain data.test=shards/test
  tgm-scale retrieve --config configs/probe_ucf101.yaml encoder.checkpoint=runs/pretrain retrieve.zero_shot=true
""",
    ),
}

_MASKS = """examples:
  tgm-scale masks evaluate --videos DIR --masks DIR
  tgm-scale masks evaluate --videos DIR --masks DIR --recipes text_guided --scorers value,vv guidance.towers=CLIP
  tgm-scale masks evaluate --videos DIR --masks DIR --recipes adamae --checkpoint RUN --config RUN/config.yaml
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


def _evaluate(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    kind = settings.FrozenConfig if options.command == "retrieve" else settings.SupervisedConfig
    resolved = settings.load_frozen(options.config, options.overrides, kind)
    from tgm_scale.evaluation import retrieve, run

    {"knn": run.run_knn, "probe": run.run_probe, "retrieve": retrieve.run_retrieve}[options.command](resolved)
    return 0


def _add_masks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--videos", type=Path, required=True, metavar="DIR")
    add("--masks", type=Path, metavar="DIR", help="where the truth is (default: beside the videos)")
    add("--captions", type=Path, metavar="FILE", help="default: captions.json in the folder of videos")
    add("--config", action=Once, metavar="FILE", help="a run's configuration, for its grid, ratio, towers and options")
    add(
        "--recipes",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="blanks or commas between (default: all)",
    )
    of_run = "run folder or checkpoint, for a learned recipe such as adamae"
    add("--checkpoint", action=Once, metavar="RUN", help=of_run)
    add("--scorers", nargs="+", action="extend", metavar="NAME", help="of text_guided (default: all)")
    add("--clips", type=int, default=3, metavar="N", help="of each video, evenly spread (default 3)")
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="write figures.json, left_out.jsonl and a picture sheet of each video there",
    )
    add_overrides(parser)


def _evaluate_masks(options: argparse.Namespace) -> int:
    part_names(options, {"recipes": ["all"], "scorers": ["all"]})
    from tgm_scale.evaluation.masks.evaluate import evaluate

    return evaluate(options)


_add_arguments = partial(add_configuration, packaged="probe_ucf101", required=False)
COMMANDS = [Command(name, summary, _add_arguments, _evaluate, text) for name, (summary, text) in _EVALUATIONS.items()]
COMMANDS.append(
    Command(
        "masks evaluate",
        "every recipe's masks evaluated on videos whose objects people annotated",
        _add_masks,
        _evaluate_masks,
        _MASKS,
        when_stopped="nothing is lost that was written",
        former="evaluate_masks",
    )
)
