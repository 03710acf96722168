"""A small finetuning run: its encoder's size, a batch for it, its configuration, its losses."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tgm_scale.models.vit import ModelSize

SIZE = ModelSize(24, 3, 2, 48, 0, 0, 0, 0, patch=8)
CLIP = torch.randint(0, 256, (6, 3, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
STEPS = 4


def configuration(tmp_path: Path, shards: str, checkpoint: Path) -> Path:
    """Of the small checkpoint's own size, by way of overrides of `tiny`."""
    file = tmp_path / "finetune.yaml"
    file.write_text(f"""
run: {{dir: {tmp_path}/run}}
data: {{train: {shards}, test: {shards}, label: truth.objects.0.shape, frames: 4, stride: 2, size: 32, workers: 0}}
finetune: {{rand_augment: rand-m5-n1, ema: 0.5, test_temporal_views: 2, drop_path: 0.2}}
model: {{size: tiny}}
optim: {{base_lr: 1e-2}}
train: {{steps: {STEPS}, global_batch_size: 8, micro_batch_size: 4}}
checkpoint: {{every: 1, keep: 9}}
log: {{tensorboard: false}}
""")
    return file


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
