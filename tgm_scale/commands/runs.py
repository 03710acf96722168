"""Commands on runs: start, status, comparison, check."""

from __future__ import annotations

import argparse
from operator import attrgetter

from tgm_scale.commands.command import Command, add_configuration, number
from tgm_scale.runtime.terminal import message, tree_without_secrets

_PRETRAIN = """examples:
  tgm-scale pretrain --config configs/debug.yaml
  tgm-scale pretrain --config configs/debug.yaml train.steps=40 masking.recipe=random
  torchrun --nproc_per_node 2 -m tgm_scale pretrain --config configs/debug.yaml
Stopped, the same command resumes from the last checkpoint. docs/CONFIGURATION.md has every key.
"""

_FINETUNE_EXAMPLES = """examples:
  tgm-scale finetune --config configs/finetune_k400.yaml train.init_from=runs/pretrain data.root=/data/k400
  torchrun --nproc_per_node 8 -m tgm_scale finetune --config configs/finetune_ssv2.yaml train.init_from=vitb.pth
  sbatch slurm/finetune.sh configs/finetune_k400.yaml train.init_from=runs/pretrain data.root=/data/k400
Without train.init_from it trains from scratch. Stopped, the same command resumes from the last checkpoint.
docs/CONFIGURATION.md has every key.
"""


def _pretrain(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    resolved = settings.load_pretraining(options.config, options.overrides)
    from tgm_scale.training.pretraining import pretrain

    return pretrain(resolved)


def _add_finetune(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser, "finetune_ucf101")


def _finetune(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    resolved = settings.load_finetune(options.config, options.overrides)
    from tgm_scale.finetuning.task import finetune

    return finetune(resolved)


def _add_preflight(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser)
    parser.add_argument(
        "--patience", type=number, default=180, metavar="SECONDS", help="for a process to answer (default: 180)"
    )
    parser.add_argument(
        "--clear-locks", action="store_true", help="remove the lock that a killed build of DeepSpeed's Adam left"
    )


def _preflight(options: argparse.Namespace) -> int:
    from tgm_scale.evaluation import settings

    resolved = settings.load_training(options.config, options.overrides)
    from tgm_scale.preflight.command import preflight
    from tgm_scale.preflight.task_checks import FinetuningChecks, PretrainingChecks

    if isinstance(resolved, settings.FinetuneConfig):
        return preflight(FinetuningChecks(resolved), options.patience, options.clear_locks)
    return preflight(PretrainingChecks(resolved), options.patience, options.clear_locks)


def _add_config(parser: argparse.ArgumentParser) -> None:
    add_configuration(parser)
    parser.add_argument("--key", metavar="section.key", help="print this value alone, such as run.dir")
    parser.add_argument(
        "--marked", action="store_true", help="with --key: as `tgm-scale: KEY=VALUE`, to be found among others' lines"
    )


def _config(options: argparse.Namespace) -> int:
    from tgm_scale import config
    from tgm_scale.evaluation import settings

    resolved = settings.load_any(options.config, options.overrides)
    known = config.all_keys(type(resolved))
    if options.key is None:
        print(config.to_yaml(tree_without_secrets(resolved.model_dump(mode="json"))), end="")
    elif options.key in known:
        value = message(str(attrgetter(options.key)(resolved)))
        print((f"tgm-scale: {options.key}=" if options.marked else "") + value)
    else:
        raise ValueError(f"--key {options.key}: no such key; known: {', '.join(known)}")
    return 0


def _add_status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="a run folder, such as runs/debug")


def _status(options: argparse.Namespace) -> int:
    from tgm_scale.runs.status import status

    print(message(status(options.run_folder)))
    return 0


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", metavar="RUN", help="exit code 1: damaged in part; 2: cannot be resumed")


def _check(options: argparse.Namespace) -> int:
    from tgm_scale.runs.check_run import check

    report, code = check(options.run_folder)
    print(message(report))
    return code


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs=2, metavar="RUN", help="two run folders; exit code 1 where they differ")


def _compare(options: argparse.Namespace) -> int:
    from tgm_scale.runs.compare import compare

    report, equal = compare(*options.runs)
    print(message(report))
    return 0 if equal else 1


PRETRAIN = Command("pretrain", "start a pretraining run, or resume it", add_configuration, _pretrain, _PRETRAIN)
FINETUNE = Command(
    "finetune", "train a classifier from a checkpoint, and test it", _add_finetune, _finetune, _FINETUNE_EXAMPLES
)
PREFLIGHT = Command("preflight", "check every node before a run, in seconds", _add_preflight, _preflight)
CONFIG = Command(
    "config", "print a configuration with defaults and overrides; preflight checks it", _add_config, _config
)
STATUS = Command("status", "how a run stands, in one screen", _add_status, _status)
COMPARE = Command("compare", "where two runs differ first: configuration, data, losses", _add_compare, _compare)
CHECK = Command("check", "whether a run folder is whole, and what it can be resumed from", _add_check, _check)
