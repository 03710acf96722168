"""A run of the tiny model that tests disturb: its configuration, starting it, and waiting for what it does."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import numpy as np
from launch import ROOT, command, environment
from starts import Started

from tgm_scale.runs.metrics import read_metrics

MODEL = """
run: {{dir: {run}}}
data: {{shards: {shards}, frames: 4, stride: 2, size: 32, workers: 0, max_skipped_share: 0.9}}
masking: {{recipe: random, mask_ratio: 0.6}}
objective: {{contrastive_weight: 0}}
model: {{size: tiny}}
"""
CONFIG = (
    MODEL
    + """
optim: {{base_lr: 3e-2}}
train: {{steps: 400, global_batch_size: 8, micro_batch_size: 4}}
checkpoint: {{every: 5, keep: 2}}
log: {{every: 1, tensorboard: false}}
"""
)


def arguments(config: Path, *overrides: str) -> list[str]:
    return ["-m", "tgm_scale", "pretrain", "--config", str(config), *overrides]


def start(config: Path, world_size: int, *overrides: str) -> subprocess.Popen[str] | Started:
    if world_size == 1:
        return Started(arguments(config, *overrides), environment(), ROOT, into_one=True)
    return subprocess.Popen(
        command(world_size, *arguments(config, *overrides)),
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_steps(folder: Path, count: int) -> None:
    end = time.monotonic() + 120
    while not (folder / "metrics.jsonl").is_file() or len(read_metrics(folder)) < count:
        assert time.monotonic() < end, "no steps were made"
        time.sleep(0.05)


def wait_for_checkpoint(folder: Path, step: int) -> None:
    """It is written while the steps after it are made."""
    end = time.monotonic() + 120
    while not (folder / f"checkpoints/step-{step:08d}/manifest.json").is_file():
        assert time.monotonic() < end, "no checkpoint was written"
        time.sleep(0.05)


def rank_file(folder: Path, rank: int) -> dict:
    return json.loads((folder / "ranks" / f"{rank:05d}").read_text())


def moving_texture(number: int) -> np.ndarray:
    """uint8 [14, 96, 128, 3]: a keyed texture that moves."""
    rng = np.random.default_rng(number)
    image = (rng.random((8, 8, 3)) * 255).repeat(12, 0).repeat(16, 1)
    return np.stack([np.roll(image, (t * (number % 3), t * 2), (0, 1)) for t in range(14)]).astype(np.uint8)
