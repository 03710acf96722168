"""`tgm-scale plan`: what a run will cost."""

from __future__ import annotations

import argparse
from functools import partial

from tgm_scale.commands.command import Command, add_overrides, number

EXAMPLES = """examples:
  tgm-scale plan --config configs/pretrain_vitl.yaml --nodes 16 --gpus-per-node 8
  tgm-scale plan --config configs/pretrain_vitb.yaml --nodes 1 --gpus-per-node 8 train.micro_batch_size=64
  tgm-scale plan --config configs/finetune_k400.yaml

Arithmetic is counted exactly. Memory is an estimate from the sizes of what is kept; time assumes the utilisation that
you give, so measure that on a few steps first: metrics.jsonl has it as mfu."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--nodes", type=int, default=1, metavar="N", help="default %(default)s")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="default %(default)s")
    add("--tflops", type=number, default=989.0, help="dense bf16 peak of one GPU (default 989: H100, H200)")
    add("--utilisation", type=number, default=0.35, help="share of the peak that is reached (default 0.35)")
    add_overrides(parser)


def _run(options: argparse.Namespace) -> int:
    for name in ("nodes", "gpus_per_node", "tflops", "utilisation"):
        if (value := getattr(options, name)) <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value}: wanted more than 0")
    from tgm_scale.evaluation import settings

    config = settings.load_training(options.config, options.overrides)
    from tgm_scale.planning.cost import Asked, plan

    if isinstance(config, settings.FinetuneConfig):
        from tgm_scale.finetuning.setup import plan_finetuning

        asked = Asked(config, partial(plan_finetuning, config), config.clips_together)
    else:
        asked = Asked.pretraining(config)
    print(plan(asked, options.nodes * options.gpus_per_node, options.tflops * 1e12 * options.utilisation))
    return 0


COMMAND = Command(
    "plan",
    "what a run will cost: arithmetic, memory, time",
    _add_arguments,
    _run,
    EXAMPLES,
    former="plan_run",
)
