"""`tgm-scale tune`: the fastest way to run a configuration that fits."""

from __future__ import annotations

import argparse
from pathlib import Path

from tgm_scale.commands.command import Command, add_overrides, number

EXAMPLES = """examples:
  tgm-scale tune --config configs/debug.yaml --dir runs/tune --processes 2
  tgm-scale tune --config configs/pretrain_vitl.yaml --dir runs/tune-vitl --processes 8 \\
      --stages 1,2,3 --offloads none,optimizer --micro-batches 32,64,128 data.shards=/scratch/shards
  srun --nodes=1 --ntasks=1 --gpus-per-node=8 --cpus-per-task=64 --pty tgm-scale tune ...

Each candidate makes a few real steps, by `tgm-scale pretrain` in as many processes as you say, on this host. First the
configuration as it is: what others' losses are compared with. Then for each ZeRO stage, offload and checkpointing the
micro batch, by doubling and bisection; and with the fastest other data workers, on a GPU compilation and kernels.
What arithmetic says cannot fit is left out, and so are larger micro batches than one that ran out of memory. A trial
that crashes, or hangs for --patience seconds, is a row of the table. The global batch stays, so micro batches change
accumulation. Steps here count train.steps=STEPS for the learning rate's schedule. A candidate that was tried is not
tried again.
DIR/best.json is the fastest's DeepSpeed JSON, DIR/best.overrides what else it takes. Exit code 4: nothing fits."""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, metavar="FILE")
    add("--dir", required=True, type=Path, metavar="DIR", help="for trials, their outcomes and the best")
    add("--processes", type=int, metavar="N", help="default: the GPUs of this host, or 1")
    add("--stages", default="0,1,2,3", metavar="LIST", help="default %(default)s")
    add("--offloads", default="none,optimizer,all", metavar="LIST", help="default %(default)s")
    add("--micro-batches", metavar="LIST", help="default: doubled and bisected to what fits and is fastest")
    add("--minutes", type=number, default=30, metavar="X", help="no trial begins after them; default %(default)s")
    add(
        "--patience",
        type=number,
        default=600,
        metavar="SECONDS",
        help="without a step: it hangs (default %(default)s)",
    )
    add("--limit", type=number, metavar="GIB", help="of memory that each process may ask for (default: none)")
    add("--steps", type=int, default=8, metavar="N", help="of each trial; default %(default)s")
    add("--warm", type=int, default=3, metavar="N", help="first steps that are not timed; default %(default)s")
    add("--keep-free", type=number, default=1.0, metavar="GIB", help="host memory that trials leave (default 1)")
    add_overrides(parser)


def _run(options: argparse.Namespace) -> int:
    from tgm_scale.tuning.tuner import Tuner

    return Tuner(options).run()


COMMAND = Command(
    "tune",
    "the fastest ZeRO stage, offload, micro batch and checkpointing that fit",
    _add_arguments,
    _run,
    EXAMPLES,
    when_stopped="finished trials are kept",
    former="tune_deepspeed",
)
