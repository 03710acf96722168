"""What each term of the objective costs beside a step of pixels alone: processor time of the debug configuration.

Each variant is trained twice, for a few steps and for more: the difference is steps alone, without the start.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.objectives.terms import TERMS
from tgm_scale.runtime import command

EXAMPLES = """examples:
  OMP_NUM_THREADS=1 python tools/measure_terms.py                 # about five minutes of a core"""
FEW = 4
# recipe, and the terms beside pixels
VARIANTS = [("tube", name) for name in TERMS] + [("text_guided", "pixels"), ("text_guided", "predict")]


def seconds(folder: Path, recipe: str, term: str, steps: int) -> float:
    """Processor time of a run, its start included."""
    terms = "{" + ", ".join(f"{name}: 1" for name in dict.fromkeys(("pixels", term))) + "}"
    given = [f"objective.terms={terms}", f"masking.recipe={recipe}", f"train.steps={steps}", "checkpoint.every=1000"]
    given += [f"data.shards={folder / 'data'}", f"run.dir={folder / f'{recipe}-{term}-{steps}'}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "tgm_scale", "pretrain", "--config", "debug", "data.synthetic.clips=64"]
        + [*given, "log.tensorboard=false"],
        check=True,
        capture_output=True,
        env=dict(os.environ),
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(options: argparse.Namespace) -> int:
    rows, base = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        seconds(folder, "tube", "pixels", 1)  # makes the data
        for recipe, term in VARIANTS:
            few, many = (seconds(folder, recipe, term, steps) for steps in (FEW, FEW + options.steps))
            step = 1000 * (many - few) / options.steps
            base.setdefault(recipe, step)
            more = step - base[recipe]
            rows.append((recipe, term if term == "pixels" else f"pixels + {term}", f"{step:.0f}", f"{more:+.0f}"))
            print(*rows[-1], file=sys.stderr, flush=True)
    print(f"{headline()}; configs/debug.yaml, {options.steps} steps of 8 clips, ms of processor time a step")
    print(table(("recipe", "terms", "step", "beside pixels"), rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps that are measured (default: 30)")
    options = parser.parse_args(arguments)
    return command.exit_code("measure_terms", lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
