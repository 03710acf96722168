"""Tensors stored next to a checkpoint in the run folder: the same on every process, so one process writes them.
`NAME-00000500.safetensors` belongs to the checkpoint of step 500, and contains a hash of its tensors."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.checkpoints.manifest import sums_of
from tgm_scale.runtime.files import replacing, sync
from tgm_scale.runtime.tensors import load_with_metadata, save_tensors

TERMS = "terms"  # file name for the state of objective terms
KEEPING = frozenset({"nearest"})  # the terms with state
_HASH = "tensors"  # key in the file's metadata; absent in older files


def file_of(folder: Path, name: str, step: int) -> Path:
    return folder / f"{name}-{step:08d}.safetensors"


def write(folder: Path, name: str, step: int, retained: list[int], tensors: Mapping[str, Tensor]) -> None:
    """Write the tensors of a step whose checkpoint is written next, and delete those of deleted checkpoints.

    retained: steps of all checkpoints. None may still be in writing: its tensors would be deleted."""
    file = file_of(folder, name, step)
    kept = {key: value.cpu().contiguous() for key, value in tensors.items()}
    with replacing(file) as work:
        save_tensors(kept, work, {_HASH: _digest(kept)})
    sync(folder)
    for old in folder.glob(f"{name}-*.safetensors"):
        if old not in {file, *(file_of(folder, name, other) for other in retained)}:
            old.unlink()


def read(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file from `write`. Raises ValueError, with the remedy, for a damaged file; OSError where
    the storage does not answer."""
    try:
        tensors, stated = load_with_metadata(file)
        if stated.get(_HASH, found := _digest(tensors)) != found:
            raise ValueError(f"{file}: damaged: its tensors differ from their hash")
    except ValueError as error:
        step = int(file.stem.rpartition("-")[2])
        raise ValueError(
            f"{error}; it belongs to the checkpoint of step {step}: restore it, or move that checkpoint away, to "
            "resume from the one before"
        ) from None
    return tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        found.update(sums_of(io.BytesIO(value.reshape(-1).view(torch.uint8).numpy().data)).encode())
    return found.hexdigest()
