"""Prove on a machine with a GPU what works, each thing in processes of its own. `make gpu`."""

from __future__ import annotations

import argparse
import json
import math
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpu_checks import card, report
from gpu_checks.bench import ROOT
from gpu_checks.rows import ROWS
from gpu_checks.runner import FAILED, OK, SKIPPED, Plan, Runner
from gpu_checks.scale import SCALES

from tgm_scale.benchmarks.machine import table
from tgm_scale.runtime import command
from tgm_scale.runtime.files import replace_file
from tgm_scale.runtime.outside.json_text import json_of
from tgm_scale.runtime.processes import unwinding
from tgm_scale.runtime.progress import clock

LOOK_SECONDS = 300.0  # for a check of the GPUs: torch's import and a first context take up to a minute
EXAMPLES = """examples:
  python tools/gpu.py                                  all that fits in 10 minutes of one H100
  python tools/gpu.py --minutes 30 --skip demo
  python tools/gpu.py --only 'vitb-*,zero*' --again
  python tools/gpu.py --device cpu                     the same rows at tiny size, without a GPU

Rows that worked are kept: stopped, the same command resumes; so it does after --minutes. They are tried again with
--again, on another card, and with other versions or another commit. OUTPUT/report.html is to look at, summary.json has
the figures, logs/ROW.log all that a row said. Exit code: 0 where every row worked or was skipped by name, 1 where
something that docs promise did not work, 2 for a mistake, such as no GPU."""


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--device", choices=sorted(SCALES), default="cuda", help="default %(default)s")
    add("--minutes", type=_minutes, default=10.0, metavar="N", help="rows that do not fit are left out (default 10)")
    add("--only", action="append", default=[], metavar="ROWS", help="names or patterns, by commas or repeated")
    add("--skip", action="append", default=[], metavar="ROWS", help="likewise")
    add("--again", action="store_true", help="also what worked before")
    add("--output", type=Path, metavar="DIR", help="default runs/gpu, on a CPU runs/gpu-cpu")
    add("--list", action="store_true", help="the rows and what each proves, and no more")
    options = parser.parse_args(arguments)
    return command.exit_code("gpu", lambda: _run(options), "the same command resumes from here")


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a number of minutes above 0")
    return value


@unwinding()
def _run(options: argparse.Namespace) -> int:
    only, skip = (
        [name.strip() for words in given for name in words.split(",") if name.strip()]
        for given in (options.only, options.skip)
    )
    scale = SCALES[options.device]
    output = (options.output or Path("runs/gpu" if options.device == "cuda" else "runs/gpu-cpu")).resolve()
    plan = Plan(ROWS, scale, output, {}, only, skip, options.minutes, options.again)
    if options.list:
        print(table(("row", "proves", "seconds"), [(r.name, r.proves, f"{r.seconds(scale.device):g}") for r in ROWS]))
        return 0
    if options.device == "cuda":
        plan = Plan(ROWS, scale, output, _look_at_gpus(), only, skip, options.minutes, options.again)
    runner = Runner(plan)
    try:
        runner.run()
    finally:
        if runner.results:
            told = summary(runner, ["python", "tools/gpu.py", *sys.argv[1:]])
            replace_file(output / "summary.json", json.dumps(told, indent=1) + "\n")
            replace_file(output / "report.html", report.page(told))
    took = [f" ({clock(found.seconds)})" if found.seconds else "" for found in runner.results]
    rows = [(found.name, found.verdict, found.figure + t, found.remedy) for found, t in zip(runner.results, took)]
    print(table(("row", "verdict", "figure", "remedy"), rows))
    counts = {verdict: sum(r.verdict == verdict for r in runner.results) for verdict in (OK, FAILED, SKIPPED)}
    print(f"\n{', '.join(f'{count} {verdict}' for verdict, count in counts.items())}; {output / 'report.html'}")
    return command.FAILED if counts[FAILED] else 0


def _look_at_gpus() -> dict[str, Any]:
    """Return facts on the GPUs. Raises ValueError where none is usable; warns where others use one."""
    command_line = [sys.executable, "-m", "gpu_checks.card", "--json", "/dev/stdout"]
    process = subprocess.Popen(
        command_line, cwd=ROOT / "tools", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        told, complaints = process.communicate(timeout=LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # without waiting for it: where the driver hangs it may never end
        raise ValueError(
            f"no GPU can be used: looking at the GPU took longer than {LOOK_SECONDS:g} s, so its driver may hang "
            f"(does nvidia-smi answer?); {card.CPU_INSTEAD}"
        ) from None
    except BaseException:
        process.kill()
        raise
    if process.returncode or "{" not in told:
        last = complaints.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
        raise ValueError(f"no GPU can be used: looking at it failed: {last[0]}; {card.CPU_INSTEAD}")
    facts = json_of(told[told.index("{") :])
    if why := card.obstacle(facts):
        raise ValueError(f"{why}. {card.CPU_INSTEAD}")
    for line in card.busy(facts["gpus"]):
        print(f"warning: {line}", file=sys.stderr)
    return facts


def summary(runner: Runner, command_line: list[str]) -> dict[str, Any]:
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(command_line),
        **runner.made_by,
        "seconds": round(sum(result.seconds for result in runner.results), 1),
        "rows": [asdict(result) for result in runner.results],
    }


if __name__ == "__main__":
    sys.exit(main())
