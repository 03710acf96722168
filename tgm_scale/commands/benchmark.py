"""`tgm-scale benchmark ...`: measurements of parts of the framework on this machine."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path

from tgm_scale.commands.command import Command, Once, add_overrides
from tgm_scale.runtime.files import check_folder, check_output

_EXAMPLES = """\
loader
loader --sizes 320x240,640x360 --gops 12,250 --workers 1,2
loader --sizes 320x240 --gops 12 --workers 1 --repeats 1,4    # taskset -c 1 before: one core
order --clips 10650000 --shards 10650 --ranks 1024
memory --clips 100000
plan --rows 10000000
ranks --ranks 8,64,512,4096
rates --json rates.json
footprint --sizes tiny,S,B --dir runs/footprint
step --config configs/debug.yaml --steps 20 model.attention=sdpa
step --config debug --against transformers masking.recipe=tube
masking --config configs/pretrain_vitb.yaml --clips 2 --towers B/32
checkpoint --config configs/pretrain_vitl.yaml train.precision=fp32
growth --output runs/growth
growth --output runs/growth --size tiny"""
_NOTE = """
Figures of a busy machine are worth little by themselves: what is compared is measured in turns, and the median ratio
of the turns is shown. --json FILE keeps the figures."""


def _examples(name: str) -> str:
    own = (f"  tgm-scale benchmark {line}" for line in _EXAMPLES.splitlines() if line.split()[0] == name)
    return "\n".join(["examples:", *own, _NOTE])


def _loader(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sizes", default="320x240,640x360", metavar="WxH,...", help="of the clips (default %(default)s)")
    add("--gops", default="12,30,250", metavar="N,...", help="frames from keyframe to keyframe (default %(default)s)")
    add("--workers", default="1,2", metavar="N,...", help="decoding processes (default %(default)s)")
    add("--repeats", default="1,2,4", metavar="N,...", help="repeated augmentation (default %(default)s)")
    add("--clips", type=int, default=8, metavar="N", help="of each corpus, ten seconds each (default %(default)s)")
    add("--turn", type=int, default=24, metavar="N", help="clips of a turn (default %(default)s)")
    add("--turns", type=int, default=9, metavar="N", help="of each way; medians are shown (default %(default)s)")
    add("--folder", type=Path, metavar="DIR", help="keep the made clips there (default: a temporary folder)")


def _order(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clips", type=int, default=10_650_000, metavar="N", help="default %(default)s")
    add("--shards", type=int, default=10_650, metavar="N", help="default %(default)s")
    add("--ranks", type=int, default=1024, metavar="N", help="of 8 clips each a step (default %(default)s)")


def _memory(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--clips", type=int, default=100_000, metavar="N", help="default %(default)s")
    add("--every", type=int, default=5_000, metavar="N", help="clips from look to look (default %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="default %(default)s")


def _plan(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rows", type=int, default=10_000_000, metavar="N", help="210 bytes each, on the disk (default %(default)s)")
    add("--clips-per-shard", type=int, default=1000, metavar="N", help="default %(default)s")


def _step(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", action=Once, required=True, metavar="FILE", help="a YAML file, such as configs/debug.yaml")
    add("--steps", type=int, default=20, metavar="N", help="default %(default)s")
    add("--warm", type=int, default=5, metavar="N", help="first steps that do not count (default %(default)s)")
    add(
        "--against",
        choices=["transformers"],
        help="compare model and optimizer with VideoMAEForPreTraining on equal work, a step of each in turns",
    )
    add_overrides(parser)


def _masking(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", action=Once, default="configs/pretrain_vitb.yaml", metavar="FILE", help="default %(default)s")
    add("--clips", type=int, default=2, metavar="N", help="of the micro batch (default %(default)s)")
    add("--towers", default="B/32", metavar="NAME", help="B/32, B/16 or tiny: random weights; or a CLIP folder")
    add("--turns", type=int, default=5, metavar="N", help="medians are shown (default %(default)s)")
    add_overrides(parser)


def _ranks(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--ranks", default="8,64,512,4096", metavar="N,...", help="default %(default)s")
    add(
        "--config",
        action=Once,
        default="configs/debug.yaml",
        metavar="FILE",
        help="whose model is saved (default %(default)s)",
    )
    add("--folder", type=Path, metavar="DIR", help="where files are written (default: the temporary folder)")
    add_overrides(parser)


def _rates(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sizes", default="tiny,S,B,L,H,g", metavar="NAME,...", help="whose blocks (default %(default)s)")
    add("--precisions", metavar="NAME,...", help="bf16, fp32 (default: bf16 on a GPU, fp32 on a CPU)")
    add("--turns", type=int, default=10, metavar="N", help="of each block; medians are shown (default %(default)s)")


def _checkpoint(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--config", action=Once, default="configs/pretrain_vitl.yaml", metavar="FILE", help="default %(default)s")
    add("--turns", type=int, default=5, metavar="N", help="of each way; medians are shown (default %(default)s)")
    add("--folder", type=Path, metavar="DIR", help="where the checkpoint is written (default: the temporary folder)")
    add_overrides(parser)


def _footprint(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--config", action=Once, default="configs/debug.yaml", metavar="FILE", help="of the runs (default %(default)s)"
    )
    add("--sizes", default="tiny,S,B", metavar="NAME,...", help="of the model (default %(default)s)")
    add("--stages", default="0,1,2,3", metavar="N,...", help="of ZeRO (default %(default)s)")
    add("--offloads", default="none", metavar="NAME,...", help="none, optimizer, all (default %(default)s)")
    add("--processes", default="1,2", metavar="N,...", help="of each run, on the CPU (default %(default)s)")
    add("--micro", type=int, default=4, metavar="N", help="clips of a micro batch (default %(default)s)")
    add("--steps", type=int, default=3, metavar="N", help="of each run (default %(default)s)")
    add("--dir", type=Path, metavar="DIR", help="keep what was measured there, and measure only the rest")
    add_overrides(parser)


def _growth(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="writes growth.json, which a later run completes, "
        "and growth.png there")  # fmt: skip
    add("--size", default="S", metavar="NAME", help="of the model: tiny, S, B, L, H or g (default %(default)s)")


_MEASURED: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "loader": ("clips a second: the loader, the bare decoder, WebDataset, SPDL", _loader),
    "order": ("millions of clips on a thousand ranks: opening, positions, resuming", _order),
    "memory": ("memory of the loader over many clips", _memory),
    "footprint": ("planned memory against runs on the CPU, by size and ZeRO stage", _footprint),
    "ranks": ("the work of thousands of ranks, simulated: order, heartbeats, checkpoints", _ranks),
    "rates": ("arithmetic of transformer blocks, for `tgm-scale plan --rates`", _rates),
    "plan": ("the plan of `shards make` over millions of rows: seconds and memory", _plan),
    "step": ("a training step and where its time goes", _step),
    "masking": ("masking recipes compared with a training step, and each saving's gain", _masking),
    "checkpoint": ("resuming from a checkpoint, with and without the comparison with its hashes", _checkpoint),
    "growth": ("how time and memory grow with tokens, batch, frames, pixels, parameters", _growth),
}


def _command(name: str) -> Command:
    summary, add_own = _MEASURED[name]

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        add_own(parser)
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")

    def run(options: argparse.Namespace) -> int:
        if options.json is not None:
            check_output("--json", options.json, "JSON file")
        for option in ("folder", "dir", "output"):
            if getattr(options, option, None) is not None:
                check_folder(f"--{option}", getattr(options, option))
        figures = importlib.import_module(f"tgm_scale.benchmarks.{name}").run(options)
        if options.json is not None:
            from tgm_scale.benchmarks.machine import described, save

            save(options.json, described() | figures)
        return 0

    when_stopped = "nothing is lost that was written"
    return Command(
        f"benchmark {name}",
        summary,
        add_arguments,
        run,
        _examples(name),
        when_stopped=when_stopped,
        former="benchmark",
    )


COMMANDS = [_command(name) for name in _MEASURED]
