"""`tgm-scale plan`: costs of a run, or the largest model for a machine. `tgm-scale tune`: the fastest settings."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgm_scale.commands.command import Command, Once, add_overrides, number

if TYPE_CHECKING:
    from tgm_scale.planning.machine import Machine

_PLAN = """examples:
  tgm-scale plan --fit 1x24GB --clips 10M
  tgm-scale plan --fit 16x8x80GB --config configs/pretrain_vith.yaml --clips 100M --price 2.5
  tgm-scale plan --config configs/pretrain_vitl.yaml --nodes 16 --gpus-per-node 8
  tgm-scale plan --config configs/pretrain_vitb.yaml --gpus-per-node 8 --card A100 train.micro_batch_size=64
  tgm-scale plan --config configs/pretrain_vith.yaml --scale 8,64,512,4096
  tgm-scale plan --config configs/finetune_k400.yaml

Arithmetic is counted exactly. Memory is an estimate from the sizes of what is kept; time assumes the utilisation that
you give, so measure that on a few steps first: metrics.jsonl has it as mfu. --fit looks for the largest model and
micro batch that GPUs hold (GPUs x memory, or nodes x GPUs x memory) and prints the command that starts it; all else is
as --config has it, and model.size=B keeps that size."""

_TUNE = """examples:
  tgm-scale tune --config configs/debug.yaml --dir runs/tune --processes 2
  tgm-scale tune --config configs/pretrain_vitl.yaml --dir runs/tune-vitl --processes 8 \\
      --stages 1,2,3 --offloads none,optimizer --micro-batches 32,64,128 data.shards=/scratch/shards
  srun --nodes=1 --ntasks=1 --gpus-per-node=8 --cpus-per-task=64 --pty tgm-scale tune ...
  sbatch --nodes=4 slurm/tune.sh --config configs/pretrain_vitl.yaml --dir runs/tune-vitl data.shards=/scratch/shards

Each candidate makes a few real steps, by `tgm-scale pretrain` in as many processes as you say, on this host, or on all
nodes of a job of slurm/tune.sh. First the configuration as it is: what others' losses are compared with. Then for each
ZeRO stage and with checkpointing the micro batch, by doubling and bisection; with the fastest on a GPU compilation and
kernels; then offload; then other data workers.
What arithmetic says cannot fit is left out, and so are larger micro batches than one that ran out of memory. A trial
that crashes, or hangs for --patience seconds, is a row of the table. After --minutes a trial is cut off, and the same
command goes on with it. The global batch stays, so micro batches change
accumulation. Steps here count train.steps=STEPS for the learning rate's schedule. A candidate that was tried is not
tried again.
DIR/best.json is the fastest's DeepSpeed JSON, DIR/best.overrides what else it takes. Exit code 4: nothing fits."""

_DEFAULT, _CARD = "configs/pretrain_vitb.yaml", "H100"


def _add_plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", action=Once, metavar="FILE", help=f"with --fit {_DEFAULT} where none is given")
    add("--fit", metavar="SHAPE", help="1x24GB, 8x80GB or 16x8x80GB: the largest model and batch that fit")
    add("--clips", metavar="N", help="with --fit: how many clips are seen, such as 10M (default: the configuration's)")
    add("--scale", metavar="N,...", help="the configuration on so many GPUs, such as 8,64,512,4096: what is short")
    add("--clips-per-gpu", type=int, metavar="N", help="with --scale: of a step (default: the configuration's batch)")
    add("--nodes", type=int, metavar="N", help="default 1")
    add("--gpus-per-node", type=int, metavar="N", help="default 8")
    add("--card", metavar="NAME", help=f"default {_CARD}, with --fit one of this memory: planning/cards.py")
    add("--tflops", type=number, metavar="X", help="dense bf16 peak of one GPU (default: the card's)")
    add(
        "--utilisation", type=number, default=0.35, metavar="X", help="share of the peak reached (default %(default)s)"
    )
    add("--rates", type=Path, metavar="FILE", help="measured by `tgm-scale benchmark rates --json FILE`, for --tflops")
    add("--within-node", type=number, default=100, metavar="GB/S", help="sent by a GPU (default %(default)s)")
    add("--between-nodes", type=number, default=25, metavar="GB/S", help="sent by a GPU (default %(default)s)")
    add("--latency", type=number, default=20, metavar="US", help="from one GPU to another (default %(default)s)")
    add(
        "--overlap", type=number, default=0, metavar="X", help="share of the network's time that is hidden (default 0)"
    )
    add("--price", type=number, metavar="X", help="of a GPU hour, in any currency")
    add("--json", type=Path, metavar="FILE", help="write the figures there, too")
    add_overrides(parser)


def _run(options: argparse.Namespace) -> int:
    for name in (
        "nodes",
        "gpus_per_node",
        "tflops",
        "utilisation",
        "price",
        "within_node",
        "between_nodes",
        "clips_per_gpu",
    ):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: wanted more than 0")
    if options.utilisation > 1:
        raise ValueError(f"--utilisation {options.utilisation:g}: wanted a share, at most 1")
    if not 0 <= options.overlap <= 1:
        raise ValueError(f"--overlap {options.overlap:g}: wanted a share, from 0 to 1")
    if options.latency < 0:
        raise ValueError(f"--latency {options.latency:g}: wanted microseconds, 0 or more")
    if options.rates is not None and options.tflops is not None:
        raise ValueError("--rates and --tflops: one of them says how fast a GPU is")
    if options.json is not None:
        from tgm_scale.runtime.files import check_output

        check_output("--json", options.json, "JSON file")
    if options.fit is not None and options.scale is not None:
        raise ValueError("--fit and --scale: one of them, since both say how many GPUs")
    if options.scale is None and options.clips_per_gpu is not None:
        raise ValueError(
            f"--clips-per-gpu {options.clips_per_gpu}: goes with --scale; set train.global_batch_size here"
        )
    way = _fitted if options.fit is not None else _scaled if options.scale is not None else _planned
    from tgm_scale.runtime.terminal import message

    text, tree = way(options)
    print(message(text))
    if options.json is not None:
        from tgm_scale.benchmarks.machine import save

        save(options.json, tree)
    return 0


def _planned(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if options.config is None:
        raise ValueError("--config is not given: name a configuration, or --fit such as 1x24GB")
    if options.clips is not None:
        raise ValueError(f"--clips {options.clips}: goes with --fit; set train.steps here")
    from tgm_scale.evaluation import settings

    config = settings.load_training(options.config, options.overrides)
    from tgm_scale.planning import estimate
    from tgm_scale.planning.cost import CostQuery

    if isinstance(config, settings.FinetuneConfig):
        from tgm_scale.finetuning.setup import plan_finetuning

        query = CostQuery(config, plan_finetuning, config.clips_together)
    else:
        query = CostQuery.pretraining(config)
    found = estimate.figures(query, _machine(options))
    return estimate.lines(found), estimate.tree(found)


def _fitted(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    for name in ("nodes", "gpus_per_node"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: --fit says it, as nodes x GPUs x memory such as 2x8x80GB")
    from tgm_scale.evaluation import settings
    from tgm_scale.planning.fit import Wanted
    from tgm_scale.planning.fit_report import report
    from tgm_scale.planning.machine import clips_of

    machine = _machine(options)
    clips = None if options.clips is None else clips_of(options.clips)
    file = options.config or _DEFAULT
    config = settings.load_pretraining(file, options.overrides)
    named = any(override.startswith("model.size=") for override in options.overrides)
    wanted = Wanted(config, machine, clips, config.model.size if named else None)
    return report(wanted, ["--config", file, *options.overrides])


def _scaled(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    if options.nodes is not None or options.config is None:
        raise ValueError("--scale: wanted --config, and no --nodes: --scale says how many GPUs, of --gpus-per-node")
    words = options.scale.split(",")
    if not all(word.isdecimal() and 0 < int(word) <= 100_000 for word in words):
        raise ValueError(f"--scale {options.scale}: wanted numbers of GPUs such as 8,64,512,4096")
    from tgm_scale.evaluation import settings
    from tgm_scale.planning import scaling

    machine = _machine(options)
    config = settings.load_pretraining(options.config, options.overrides)
    found = scaling.rows(config, machine, sorted({int(word) for word in words}), options.clips_per_gpu)
    return "\n".join([*scaling.lines(found), machine.assumed, machine.network.assumed(2)]), scaling.tree(found)


def _machine(options: argparse.Namespace) -> Machine:
    """Return the machine, with a card's memory and power only if it is named, or assumed without a given rate."""
    from tgm_scale.planning import cards, rates
    from tgm_scale.planning.machine import Machine, card_of, refuse_crowded, shape_of
    from tgm_scale.planning.network import Network

    nodes, gpus, memory = options.nodes or 1, options.gpus_per_node or 8, None
    refuse_crowded(gpus, f"--gpus-per-node {gpus}", "wanted the GPUs of one node, and how many nodes in --nodes")
    card = cards.of_name(options.card) if options.card else None
    if options.fit is not None:
        nodes, gpus, memory = shape_of(options.fit)
        card = card or (card_of(memory) if options.tflops is None else None)
    elif card is None and options.tflops is None:
        card = cards.of_name(_CARD)
    if memory is None and card is not None:
        memory = card.memory * 1e9
    peak = options.tflops * 1e12 if options.tflops else card.peak if card else None
    network = Network(1e9 * options.within_node, 1e9 * options.between_nodes, options.latency / 1e6, options.overlap)
    measured = rates.load(options.rates) if options.rates is not None else None
    return Machine(nodes, gpus, memory, card, peak, options.utilisation, options.price, network, measured)


def _add_tune(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", required=True, action=Once, metavar="FILE")
    add("--dir", required=True, type=Path, metavar="DIR", help="for trials, their outcomes and the best")
    add("--processes", type=int, metavar="N", help="default: the GPUs of this host, or 1")
    add("--nodes", type=int, metavar="N", help="by slurm/tune.sh: each trial is a step on so many nodes of its job")
    add("--stages", default="0,1,2,3", metavar="LIST", help="default %(default)s")
    add("--offloads", default="none,optimizer,all", metavar="LIST", help="default %(default)s")
    add("--micro-batches", metavar="LIST", help="default: doubled and bisected to what fits and is fastest")
    add("--minutes", type=number, default=30, metavar="X", help="in all; default %(default)s")
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


def _tune(options: argparse.Namespace) -> int:
    from tgm_scale.tuning.tuner import Tuner

    return Tuner(options).run()


PLAN = Command(
    "plan",
    "what a run will cost: arithmetic, memory, time; and what a machine can hold",
    _add_plan,
    _run,
    _PLAN,
    former="plan_run",
)
TUNE = Command(
    "tune",
    "the fastest ZeRO stage, offload, micro batch and checkpointing that fit",
    _add_tune,
    _tune,
    _TUNE,
    when_stopped="finished trials are kept",
    former="tune_deepspeed",
)
