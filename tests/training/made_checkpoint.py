"""Checkpoints of two small tensors, without a training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from tgm_scale.checkpoints import checkpoint, folders, manifest
from tgm_scale.runtime.tensors import save_tensors


def made(root: Path, step: int) -> Path:
    """A checkpoint of two small tensors."""
    folder = folders.folder_of(root, step)
    folder.mkdir(parents=True)
    file = folder / "state-00000-of-00001.safetensors"
    save_tensors({"a.weight": torch.full((1000,), float(step)), "a.exp_avg": torch.ones(8)}, file)
    entry = {"name": file.name, "bytes": file.stat().st_size, "blake2b": checkpoint.digest(file)}
    told = {"progress": {"step": step, "updates": step, "skipped": {}}, "files": [entry]}
    (folder / manifest.NAME).write_text(manifest.to_json(told))
    return folder


def edited(folder: Path, change: Callable[[dict], object]) -> None:
    """A manifest changed by one who makes its own hash again."""
    tree = json.loads((folder / manifest.NAME).read_text())
    change(tree)
    (folder / manifest.NAME).write_text(manifest.to_json(tree))
