"""Evaluations of a checkpoint's frozen features."""

from __future__ import annotations

import argparse
from functools import partial

from tgm_scale.commands.command import Command, add_configuration

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


def _evaluate(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    kind = settings.FrozenConfig if options.command == "retrieve" else settings.SupervisedConfig
    resolved = settings.load_frozen(options.config, options.overrides, kind)
    from tgm_scale.evaluation import retrieve, run

    {"knn": run.run_knn, "probe": run.run_probe, "retrieve": retrieve.run_retrieve}[options.command](resolved)
    return 0


_add_arguments = partial(add_configuration, packaged="probe_ucf101", required=False)
COMMANDS = [Command(name, summary, _add_arguments, _evaluate, text) for name, (summary, text) in _EVALUATIONS.items()]
