"""The one console command. Heavy imports wait until a subcommand runs, so `--help` is instant."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter

from tgm_scale import __version__
from tgm_scale.runtime.command import FAILED, USER_MISTAKE, Parser
from tgm_scale.runtime.secrets import tree_without_secrets
from tgm_scale.runtime.terminal import message, outlive_the_terminal

_EXAMPLES = """examples:
  tgm-scale pretrain --config configs/debug.yaml
  tgm-scale pretrain --config configs/debug.yaml train.steps=40 masking.recipe=random
  torchrun --nproc_per_node 2 -m tgm_scale pretrain --config configs/debug.yaml
"""

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
Features are kept in run.dir/features: a stopped or repeated evaluation goes on from them.
""",
    ),
    "retrieve": (
        "text-to-video retrieval and back, or zero-shot classes, with a joint model's projection",
        """examples:
  tgm-scale retrieve run.dir=runs/r encoder.checkpoint=runs/pretrain data.test=shards/test
  tgm-scale retrieve --config configs/probe_ucf101.yaml encoder.checkpoint=runs/pretrain retrieve.zero_shot=true
""",
    ),
}

_FINETUNE_EXAMPLES = """examples:
  tgm-scale finetune --config configs/finetune_k400.yaml train.init_from=runs/pretrain data.root=/data/k400
  torchrun --nproc_per_node 8 -m tgm_scale finetune --config configs/finetune_ssv2.yaml train.init_from=vitb.pth
  sbatch slurm/finetune.sh configs/finetune_k400.yaml train.init_from=runs/pretrain data.root=/data/k400
Without train.init_from it trains from scratch. Stopped, the same command goes on from the last checkpoint.
"""


def entry() -> None:
    """The console command: `main`, then an exit without the interpreter's own end.

    Threads of torch's backward pass and of gloo may still ask for the interpreter while it ends, which Python 3.11
    answers by aborting the process: seen in 1 of 20 runs under ZeRO-3, after all work was done."""
    outlive_the_terminal()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. Exit code 2 and one message for a user's mistake."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except ValueError as mistake:
        print(message(f"tgm-scale {options.command}: {mistake}"), file=sys.stderr)
        return USER_MISTAKE
    except (OSError, RuntimeError) as failure:
        if type(failure) is RuntimeError:
            raise  # not foreseen: the traceback is wanted
        print(message(f"tgm-scale {options.command}: stopped: {failure}"), file=sys.stderr)
        return getattr(failure, "exit_code", FAILED)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="tgm-scale",
        description="Text-guided masked video pretraining at scale.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tgm-scale {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    pretrain = _command(commands, "pretrain", "start a pretraining run, or go on with it", _pretrain, _EXAMPLES)
    _add_configuration(pretrain)
    for name, (summary, examples) in _EVALUATIONS.items():
        _add_configuration(_command(commands, name, summary, _evaluate, examples), "probe_ucf101", required=False)
    finetune = _command(
        commands, "finetune", "train a classifier from a checkpoint, and test it", _finetune, _FINETUNE_EXAMPLES
    )
    _add_configuration(finetune, "finetune_ucf101")
    status = _command(commands, "status", "how a run stands, in one screen", _status)
    status.add_argument("run_folder", metavar="RUN", help="a run folder, such as runs/debug")
    compare = _command(commands, "compare", "where two runs part: configuration, data, losses", _compare)
    compare.add_argument("runs", nargs=2, metavar="RUN", help="two run folders; exit code 1 where they differ")
    check = _command(commands, "check", "whether a run folder is whole, and what can be gone on from", _check)
    check.add_argument("run_folder", metavar="RUN", help="exit code 1: damaged in part; 2: cannot be gone on with")
    preflight = _command(commands, "preflight", "check every node before a run, in seconds", _preflight)
    _add_configuration(preflight)
    preflight.add_argument(
        "--patience", type=float, default=180, metavar="SECONDS", help="for a process to answer (default: 180)"
    )
    preflight.add_argument(
        "--clear-locks", action="store_true", help="remove the lock that a killed build of DeepSpeed's Adam left"
    )
    resolved = _command(
        commands, "config", "print a configuration with defaults and overrides; preflight checks it", _config
    )
    _add_configuration(resolved)
    resolved.add_argument("--key", metavar="section.key", help="print this value alone, such as run.dir")
    resolved.add_argument(
        "--marked", action="store_true", help="with --key: as `tgm-scale: KEY=VALUE`, to be found among others' lines"
    )
    return parser


def _add_configuration(command: argparse.ArgumentParser, packaged: str = "debug", required: bool = True) -> None:
    """packaged: the name of one that comes with the project."""
    command.add_argument(
        "--config", required=required, metavar="FILE", help=f"a YAML file; `{packaged}` is a packaged one"
    )
    command.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="laid over the file, such as run.dir=runs/mine"
    )


def _command(
    commands: argparse._SubParsersAction,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    examples: str | None = None,
) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _pretrain(options: argparse.Namespace) -> int:
    from tgm_scale import config

    resolved = config.load(options.config, options.overrides)
    from tgm_scale.conversion.read import read_initial
    from tgm_scale.evaluation.online import Neighbours
    from tgm_scale.training.loop import pretrain

    return pretrain(resolved, read_initial, Neighbours)


def _evaluate(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    kind = settings.FrozenConfig if options.command == "retrieve" else settings.JudgedConfig
    resolved = settings.load_frozen(options.config, options.overrides, kind)
    from tgm_scale.evaluation import retrieve, run

    {"knn": run.run_knn, "probe": run.run_probe, "retrieve": retrieve.run_retrieve}[options.command](resolved)
    return 0


def _finetune(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    resolved = settings.load_finetune(options.config, options.overrides)
    from tgm_scale.evaluation.finetune import finetune

    return finetune(resolved)


def _preflight(options: argparse.Namespace) -> int:
    from tgm_scale import config

    resolved = config.load(options.config, options.overrides)
    from tgm_scale.training.preflight import preflight

    return preflight(resolved, options.patience, options.clear_locks)


def _config(options: argparse.Namespace) -> int:
    from tgm_scale import config
    from tgm_scale.evaluation import settings

    resolved = settings.load_any(options.config, options.overrides)
    known = config.all_keys(type(resolved))
    if options.key is None:
        print(config.written(tree_without_secrets(resolved.model_dump(mode="json"))), end="")
    elif options.key in known:
        value = message(str(attrgetter(options.key)(resolved)))
        print((f"tgm-scale: {options.key}=" if options.marked else "") + value)
    else:
        raise ValueError(f"--key {options.key}: no such key; known: {', '.join(known)}")
    return 0


def _status(options: argparse.Namespace) -> int:
    from tgm_scale.training.inspect import status

    print(message(status(options.run_folder)))
    return 0


def _check(options: argparse.Namespace) -> int:
    from tgm_scale.training.check_run import check

    report, code = check(options.run_folder)
    print(message(report))
    return code


def _compare(options: argparse.Namespace) -> int:
    from tgm_scale.training.inspect import compare

    report, equal = compare(*options.runs)
    print(message(report))
    return 0 if equal else 1
