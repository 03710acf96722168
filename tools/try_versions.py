"""Run a fast part of the tests and a first run with the lowest, the pinned and the newest packages, on each Python.

examples:
  python tools/try_versions.py
  python tools/try_versions.py --pythons 3.12 --sets newest
  python tools/try_versions.py --output versions.md

Each cell is a fresh virtual environment with the package as `pip install .` gives it, removed when it is done.
`lowest` are the lower bounds of setup.cfg, `pinned` is constraints.txt, `newest` is what the registry has today.
pip's own variables (PIP_FIND_LINKS, PIP_EXTRA_INDEX_URL, ...) count. Exit code 1 where a cell fails."""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tgm_scale.runtime import command
from tgm_scale.runtime.outside.json_text import json_of

ROOT = Path(__file__).parents[1]
SETS = ("lowest", "pinned", "newest")
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "transformers", "av", "numpy", "pydantic", "timm", "fsspec")
FAST = (  # tests that touch other packages most, in a minute or two of one core
    "tests/test_config.py",
    "tests/conversion/test_huggingface.py",
    "tests/data/test_encode.py",
    "tests/data/test_motion.py",
    "tests/guidance/test_image_tower.py",
    "tests/guidance/test_text_tower.py",
    "tests/objectives",
    "tests/training/test_engine.py",
    "tests/training/test_engine_keys.py::test_every_key_that_deepspeed_reads_has_its_row",
    "tests/training/test_metrics.py",
)
TEST_TOOLS = ("pytest", "hypothesis", "opencv-python-headless")
TEST_SECONDS = 360
INSTALL_SECONDS = 1800
FIRST_RUN = ("data.synthetic.clips=16", "data.workers=0", "train.steps=4", "train.global_batch_size=8")


@dataclass
class Cell:
    python: str
    packages: str
    versions: dict[str, str]
    result: str
    seconds: float

    @property
    def passed(self) -> bool:
        return self.result.startswith("passes")


def main() -> int:
    parser = command.parser(__doc__.split("\n\n")[0], __doc__.split("\n\n", 1)[1])
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, metavar="X.Y", help="default: those that are here")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS, help="default: all three")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there, as Markdown")
    options = parser.parse_args()
    return command.exit_code("try_versions", lambda: _run(options), "the cells before it were printed")


def _run(options: argparse.Namespace) -> int:
    found = {version: path for version in options.pythons if (path := _interpreter(version))}
    for version in options.pythons:
        if version not in found:
            print(f"Python {version} is not here: left out", flush=True)
    if not found:
        raise ValueError(f"--pythons {' '.join(options.pythons)}: none is here")
    cells = []
    for packages in options.sets:
        for version, path in found.items():
            cells.append(try_cell(version, path, packages))
            print(_line(cells[-1]), flush=True)
    if options.output:
        options.output.write_text("\n".join(_table(cells)) + "\n", encoding="utf-8")
    return 0 if all(cell.passed for cell in cells) else 1


def _interpreter(version: str) -> str | None:
    """Return the path of Python X.Y, on the PATH or among pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    of_pyenv = [
        (int(found[1]), path)
        for path in (root / "versions").glob(f"{version}.*/bin/python")
        if (found := re.fullmatch(rf"{re.escape(version)}\.(\d+)", path.parents[1].name))
    ]
    on_path = shutil.which(f"python{version}")
    paths = [on_path] if on_path else []
    paths += [str(path) for _, path in sorted(of_pyenv, reverse=True)]
    for path in paths:  # pyenv's shim on the PATH does not run for a version that is not selected
        if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


def lowest() -> Iterator[str]:
    """Yield the lower bounds of setup.cfg as pip's constraints, without extras."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = parser["options"]["install_requires"] + parser["options.extras_require"]["s3"]
    for line in filter(None, listed.splitlines()):
        name, _, bound = re.sub(r"\[.*?\]", "", line).partition(">=")
        if not bound:
            raise ValueError(f"setup.cfg: {line}: has no lower bound")
        yield f"{name}=={bound.split(',')[0]}"


def try_cell(python: str, interpreter: str, packages: str) -> Cell:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="versions-") as name:
        folder = Path(name)
        bin_folder, log = folder / "venv" / "bin", folder / "log"
        constraints = _constraints(folder, packages)
        steps = {
            "venv": [interpreter, "-m", "venv", str(folder / "venv")],
            "install": [
                str(bin_folder / "pip"),
                "install",
                "--quiet",
                "--no-compile",
                *constraints,
                str(ROOT),
                *TEST_TOOLS,
            ],
            "first run": [str(bin_folder / "tgm-scale"), "pretrain", "--config", "debug", *FIRST_RUN],
            "tests": [str(bin_folder / "python"), "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", *FAST],
        }
        result, versions = "", {}
        for step, arguments in steps.items():
            problem = _try(step, arguments, folder, log)
            if step == "install" and not problem:
                versions = _versions(bin_folder / "python")
            if problem:
                result = problem
                break
        else:
            result = "passes: " + _counts(log.read_text(encoding="utf-8"))
    return Cell(python, packages, versions, result, time.monotonic() - began)


def _counts(output: str) -> str:
    """Return pytest's summary line; an old torch writes a warning after it."""
    return [line for line in output.splitlines() if re.search(r"\d+ passed", line)][-1].strip("= ")


def _constraints(folder: Path, packages: str) -> list[str]:
    if packages == "newest":
        return []
    file = ROOT / "constraints.txt"
    if packages == "lowest":
        file = folder / "lowest.txt"
        file.write_text("\n".join(lowest()) + "\n", encoding="utf-8")
    return ["-c", str(file)]


def _try(step: str, arguments: list[str], folder: Path, log: Path) -> str:
    """Run a step and return its failure in one line, or "". The tests use the checkout, the first run the installed
    package."""
    limit = TEST_SECONDS if step in ("tests", "first run") else INSTALL_SECONDS
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables |= {"OMP_NUM_THREADS": "1"} | ({"PYTHONPATH": str(ROOT)} if step == "tests" else {})
    with log.open("w", encoding="utf-8") as stream:
        try:
            code = subprocess.run(
                arguments,
                cwd=ROOT if step == "tests" else folder,
                env=variables,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=limit,
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    if code == 0:
        return ""
    output = log.read_text(encoding="utf-8")
    print(output[-4000:], file=sys.stderr)
    last = output.strip().splitlines()[-1:] or ["no output"]
    return f"{step}: " + (f"longer than {limit} s" if code == -1 else f"exit {code}: {last[0][:200]}")


def _versions(python: Path) -> dict[str, str]:
    listed = subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], capture_output=True, text=True)
    return {entry["name"].lower(): entry["version"] for entry in json_of(listed.stdout)}


def _line(cell: Cell) -> str:
    shown = ", ".join(f"{name} {cell.versions.get(name, '?')}" for name in SHOWN)
    return f"{cell.packages} on {cell.python}: {cell.result} ({shown}; {cell.seconds:.0f} s)"


def _table(cells: list[Cell]) -> Iterator[str]:
    yield f"| packages | Python | {' | '.join(SHOWN)} | result |"
    yield "|---" * (len(SHOWN) + 3) + "|"
    for cell in cells:
        shown = " | ".join(cell.versions.get(name, "?") for name in SHOWN)
        yield f"| {cell.packages} | {cell.python} | {shown} | {cell.result} |"


if __name__ == "__main__":
    sys.exit(main())
