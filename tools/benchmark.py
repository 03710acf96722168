"""Measure a part of the framework on this machine."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from tgm_scale.runtime import command

EXAMPLES = """examples:
  python tools/benchmark.py loader
  taskset -c 1 python tools/benchmark.py loader --sizes 320x240 --gops 12 --workers 1 --repeats 1,4
  python tools/benchmark.py loader --decoders pyav,torchcodec --sizes 320x240,640x360 --gops 12,250 --workers 1,2
  python tools/benchmark.py order --clips 10650000 --shards 10650 --ranks 1024
  python tools/benchmark.py memory --clips 100000
  python tools/benchmark.py plan --rows 10000000
  python tools/benchmark.py step --config configs/debug.yaml --steps 20 model.attention=sdpa
  python tools/benchmark.py masking --config configs/pretrain_vitb.yaml --clips 2 --towers B/32

Figures of a busy machine are worth little by themselves: what is compared is measured in turns, and the median ratio
of the turns is shown. Each benchmark has a --help of its own, and --json FILE keeps its figures."""

# Each is a module of tools/benchmarks with `add_arguments(parser)` and `run(options)`, which returns its figures.
BENCHMARKS = {
    "loader": "clips a second: the loader, the bare decoder, a WebDataset pipeline, by decoder",
    "order": "millions of clips on a thousand ranks: opening, positions, resuming",
    "memory": "memory of the loader over many clips",
    "plan": "make_shards' plan over millions of rows: seconds and memory",
    "step": "a training step and where its time goes",
    "masking": "each masking recipe beside a training step, and what each saving brings",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="benchmark")
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, str(Path(__file__).parent))
    for name, summary in BENCHMARKS.items():
        one = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
        if given[:1] == [name]:  # the others' imports can wait
            module = importlib.import_module(f"benchmarks.{name}")
            module.add_arguments(one)
            one.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
            one.set_defaults(run=module.run)
    options = parser.parse_args(given)
    return command.exit_code(f"benchmark {options.benchmark}", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    figures = options.run(options)
    if options.json is not None:
        from benchmarks.machine import described, save

        save(options.json, described() | figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
