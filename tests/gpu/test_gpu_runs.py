"""Whole runs on the device with deterministic kernels: the same twice, and with guidance on a stream of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from launch import ROOT, environment

from tgm_scale.runs.metrics import read_metrics

pytestmark = pytest.mark.gpu
STEPS = 4
VARIANTS = {"plain": (), "again": (), "own stream": ("guidance.own_stream=true",)}


@pytest.fixture(scope="module")
def rows(device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    from gpu_checks.restarts import DETERMINISTIC, NO_SUCH_KERNEL

    folder = tmp_path_factory.mktemp("runs")
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tools")])
    common = [f"data.shards={folder / 'data'}", "data.synthetic.clips=16", f"train.steps={STEPS}", "data.size=32"]
    for name, own in VARIANTS.items():
        words = [*common, f"run.dir={folder / name}", "log.tensorboard=false", *own]
        command = [sys.executable, "-m", "gpu_checks.deterministic", "pretrain", "--config", "configs/debug.yaml"]
        variables = {**environment(), **DETERMINISTIC, "PYTHONPATH": paths}
        done = subprocess.run([*command, *words], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
        if NO_SUCH_KERNEL in done.stderr:
            pytest.skip(f"no deterministic kernels here: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return {name: read_metrics(folder / name) for name in VARIANTS}


@pytest.mark.parametrize("variant", ["again", "own stream"])
def test_a_run_gives_the_same_clips_masks_and_losses(rows: dict[str, list[dict]], variant: str) -> None:
    assert len(rows["plain"]) == STEPS
    for figure in ("data_digest", "loss", "grad_norm"):
        assert [row[figure] for row in rows[variant]] == [row[figure] for row in rows["plain"]]
