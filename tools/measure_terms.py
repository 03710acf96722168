"""What each term of the objective costs beside a step of pixels alone, by runs of the debug configuration."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tgm_scale.benchmarks.machine import headline, table
from tgm_scale.objectives.terms import TERMS
from tgm_scale.runs.metrics import read_metrics
from tgm_scale.runtime import command

EXAMPLES = """examples:
  OMP_NUM_THREADS=1 python tools/measure_terms.py                 # about four minutes"""
# recipe, and the terms beside pixels
VARIANTS = [("tube", name) for name in TERMS] + [("text_guided", "pixels"), ("text_guided", "predict")]


def milliseconds(folder: Path, recipe: str, term: str, steps: int) -> float:
    """Of a step, the least of some: what other processes of the machine took is in the others. Without the data."""
    terms = "{" + ", ".join(f"{name}: 1" for name in dict.fromkeys(("pixels", term))) + "}"
    run = folder / f"{recipe}-{term}"
    given = [f"objective.terms={terms}", f"masking.recipe={recipe}", f"train.steps={steps}", "checkpoint.every=1000"]
    given += [f"data.shards={folder / 'data'}", "data.synthetic.clips=64", f"run.dir={run}", "log.tensorboard=false"]
    command_line = [sys.executable, "-m", "tgm_scale", "pretrain", "--config", "debug", *given]
    subprocess.run(command_line, check=True, capture_output=True)
    return 1000 * min(row["step_seconds"] - row["data_seconds"] for row in read_metrics(run))


def measure(options: argparse.Namespace) -> int:
    rows = []
    base: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for recipe, term in VARIANTS:
            step = milliseconds(Path(scratch), recipe, term, options.steps)
            more = step - base.setdefault(recipe, step)
            rows.append((recipe, term if term == "pixels" else f"pixels + {term}", f"{step:.0f}", f"{more:+.0f}"))
            print(*rows[-1], file=sys.stderr, flush=True)
    print(f"{headline()}; configs/debug.yaml, ms of a step of 8 clips, the least of {options.steps}")
    print(table(("recipe", "terms", "step", "beside pixels"), rows))
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    parser.add_argument("--steps", type=int, default=30, metavar="N", help="steps of a run (default: 30)")
    options = parser.parse_args(arguments)
    return command.exit_code("measure_terms", lambda: measure(options))


if __name__ == "__main__":
    raise SystemExit(main())
