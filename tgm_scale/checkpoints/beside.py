"""Tensors that belong to a checkpoint and lie beside it in the run folder: the same on every process, so that one
writes them. `NAME-00000500.safetensors` belongs to the checkpoint of step 500."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from tgm_scale.runtime.files import replacing, sync
from tgm_scale.runtime.tensors import save_tensors

TERMS = "terms"  # the name of what terms of the objective keep
KEEPING = frozenset({"nearest"})  # the terms that keep something


def file_of(folder: Path, name: str, step: int) -> Path:
    return folder / f"{name}-{step:08d}.safetensors"


def write(folder: Path, name: str, step: int, retained: list[int], tensors: Mapping[str, Tensor]) -> None:
    """Write what belongs to a step that is checkpointed next, and drop that of checkpoints that are gone.

    retained: the steps of all checkpoints. None may be on its way to the disk: what is its would be dropped."""
    file = file_of(folder, name, step)
    with replacing(file) as work:
        save_tensors({key: value.cpu().contiguous() for key, value in tensors.items()}, work)
    sync(folder)
    for old in folder.glob(f"{name}-*.safetensors"):
        if old not in {file, *(file_of(folder, name, other) for other in retained)}:
            old.unlink()
