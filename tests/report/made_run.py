"""Run folders as a start leaves them, of any number of steps, without a training."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Row = dict[str, Any]


def row(step: int) -> Row:
    """What a step of a pretraining writes."""
    fall = math.exp(-step / 20_000)
    return {
        "step": step,
        "samples": 8 * step,
        "loss": 3 * fall + 1,
        "loss_reconstruction": fall,
        "loss_contrastive": 2 * fall + 1,
        "contrastive_accuracy": 1 - fall,
        "temperature": 0.07,
        "learning_rate": 1e-4 * fall,
        "grad_norm": 1.0 + step % 7,
        "update_refused": False,
        "refusal": None,
        "step_seconds": 0.5,
        "data_seconds": 0.05,
        "guidance_seconds": 0.1,
        "clips_per_second": 16.0,
        "skipped_samples": 0,
        "data_digest": "2-00037c5b924a1d",
        "mask_swapped_overlap": 0.66,
        "mask_centre_overlap": 0.98,
        "mask_slot_repeat": 0.7,
    }


def made_run(folder: Path, rows: list[Row], **sections: dict[str, Any]) -> Path:
    """A run of two starts: from the beginning, and from half of the rows on."""
    folder.mkdir(parents=True)
    tree = {
        "run": {"dir": str(folder), "seed": 0},
        "data": {"workers": 0, "shards": "clips.csv"},
        "model": {"size": "tiny", "decode_ratio": 1.0},
        "masking": {"recipe": "text_guided", "mask_ratio": 0.6},
        "train": {"global_batch_size": 8},
        **sections,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    plan = {"steps": len(rows) + 10, "world_size": 1, "visible_tokens": 40, "target_tokens": 60}
    (folder / "plan.json").write_text(json.dumps(plan))
    starts = [(0, "2026-01-01T10:00:00+0000", None), (len(rows) // 2, "2026-01-02T10:00:00+0000", "4711")]
    lines = [
        {"step": step, "time": time, "host": "n1", "slurm_job": job, "slurm_nodes": job and "n[1-2]", "git": None,
         "packages": {"torch": "2.13.0" if job else "2.12.0"}}
        for step, time, job in starts
    ]  # fmt: skip
    (folder / "environment.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_rows(folder, rows)
    return folder


def write_rows(folder: Path, rows: list[Row]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def changed(origin: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    """A copy of a run folder with something about it changed."""
    shutil.copytree(origin, folder)
    change(folder)
    return folder
