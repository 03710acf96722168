"""Damage a run folder, a corpus or a tower in every way that is known, start the same command, and evaluate how it
ends."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from damage import reference
from damage.cases import ANOTHER, FAILED, LEFT_OUT, REFUSED, SAME, UNSEEN, Case, run_case

from tgm_scale.runtime import command
from tgm_scale.runtime.progress import ProgressBars

EXAMPLES = """examples:
  python tools/damage_drill.py --cases 200
  python tools/damage_drill.py --cases 2000 --seed 1 --processes 2
  python tools/damage_drill.py --seed 1 --only 1234 --dir runs/case

Each case damages one thing (a bit, a cut, a name, a mode, a value, a tar's header, ...) of a copy of a small run
folder, its corpus or its tower, drawn by seed and number, and starts the same command: a whole start of `tgm-scale
pretrain`, in a fork of one process that has imported everything. It must end with the weights of the undisturbed run
to the bit; or with the same but for samples that are named; or, where it begins, in another order since a shard is
another, which is named; or with exit code 2 and the file named. Exit code: 0 all did, 1 one did not (its seed, number
and files are named, and stay in --dir), 2 a mistake."""

OUTCOMES = (SAME, LEFT_OUT, ANOTHER, REFUSED, UNSEEN, FAILED)


def main(arguments: list[str] | None = None) -> int:
    parser = command.parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("--cases", type=int, default=2000, metavar="N", help="default %(default)s")
    add("--first", type=int, default=0, metavar="N", help="number of the first; default %(default)s")
    add("--seed", type=int, default=0, help="default %(default)s")
    add("--only", type=int, metavar="N", help="this case alone, with all it says")
    add("--processes", type=int, default=1, metavar="N", help="cases at once; default %(default)s")
    add("--dir", type=Path, metavar="DIR", help="for the files of failed cases; default: none are kept")
    options = parser.parse_args(arguments)
    return command.exit_code("damage_drill", lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    if options.dir is not None:
        return drill(options, options.dir.absolute())
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        return drill(options, Path(folder))


def drill(options: argparse.Namespace, folder: Path) -> int:
    numbers = range(options.first, options.first + options.cases) if options.only is None else [options.only]
    reference.warm()
    expected = reference.make(folder / "reference")
    cases = []
    with ProgressBars() as bars, ProcessPoolExecutor(options.processes, multiprocessing.get_context("fork")) as pool:
        task = bars.task("cases", len(numbers))
        waiting = [pool.submit(run_case, options.seed, number, folder, expected) for number in numbers]
        for future in waiting:
            case = future.result()
            cases.append(case)
            if case.wrong:
                print(f"FAILED: --seed {options.seed} --only {case.number}: {case.line()}: {case.wrong}", flush=True)
            task.advance()
    if options.only is not None:
        output = folder / f"case-{options.only:05d}" / reference.OUTPUT
        print(
            (output.read_text(encoding="utf-8") if output.is_file() else "") + f"{cases[0].line()}: {cases[0].outcome}"
        )
    print(table(cases))
    return command.FAILED if any(case.wrong for case in cases) else 0


def table(cases: list[Case]) -> str:
    counts = Counter((case.part, case.kind, case.outcome) for case in cases)
    lines = ["| part | kind | cases | " + " | ".join(OUTCOMES) + " |", "|---|---|" + "---|" * (len(OUTCOMES) + 1)]
    for part, kind in sorted({(case.part, case.kind) for case in cases}):
        of = [counts[part, kind, outcome] for outcome in OUTCOMES]
        lines.append(f"| {part} | {kind} | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    of = [sum(case.outcome == outcome for case in cases) for outcome in OUTCOMES]
    lines.append(f"| all | | {sum(of)} | " + " | ".join(map(str, of)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
