"""An exponential average of a classifier's weights, stored next to its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.checkpoints import beside
from tgm_scale.checkpoints.checkpoint import Reader

_NAME = "ema"
_MANY = 1 << 30  # updates after which the division is negligible, for decays below 1 - 1e-8
_UPDATES = "updates averaged"  # key beside the weights in the file; absent in older files


def file_of(folder: Path, step: int) -> Path:
    return beside.file_of(folder, _NAME, step)


class Average:
    """Exponential average: decay * average + (1 - decay) * weight after each update, float32, the same on every
    process.

    Divided by the sum of these shares (as Adam's means, Kingma and Ba 2015, section 3), so the first weights, which
    are random in training from scratch, have no part in it. It matches the averages that `HeadNorm` keeps in the same
    way.

    weights: yields (name, float32 weight) anew at each call, the masters that Adam updates: a bf16 copy is rounded by
    up to 0.2 %, and does not move at all for smaller changes. Collective where `weights` is."""

    def __init__(self, weights: Callable[[], Iterable[tuple[str, Tensor]]], decay: float, folder: Path) -> None:
        self._weights, self._decay, self._folder = weights, decay, folder
        self._values = {name: value.detach().float().clone() for name, value in weights()}
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        share = (1 - self._decay) / (1 - self._decay**self._updates)
        for name, value in self._weights():
            self._values[name].lerp_(value.detach().float(), share)

    def write(self, step: int, retained: list[int]) -> None:
        """Write the average for a step, as `beside.write` does."""
        beside.write(self._folder, _NAME, step, retained, {**self._values, _UPDATES: torch.tensor(self._updates)})

    def read(self, step: int) -> None:
        """Continue from the average of a checkpoint. Raises ValueError where it belongs to another model."""
        found, updates = _read(self._folder, step)
        if {name: value.shape for name, value in found.items()} != {
            name: value.shape for name, value in self._values.items()
        }:
            raise ValueError(f"{file_of(self._folder, step)}: weights of another model: restore this run's")
        for name, value in found.items():
            self._values[name].copy_(value)
        self._updates = updates


def read(folder: Path, step: int) -> dict[str, Tensor]:
    """Return the averaged weights by name. Raises ValueError where the file is missing or damaged."""
    return _read(folder, step)[0]


def _read(folder: Path, step: int) -> tuple[dict[str, Tensor], int]:
    """Return the averaged weights and their number of updates. An older version's file, which began with the first
    weights, counts as one of so many that the division is negligible."""
    file = file_of(folder, step)
    if not file.is_file():
        raise ValueError(f"{file}: missing; finetune.ema cannot be switched on in the middle of a run")
    found = beside.read(file)
    updates = found.pop(_UPDATES, None)
    return found, _MANY if updates is None else int(updates)


def averaged_file(checkpoint: Reader) -> Path | None:
    """Return the file of averaged weights of a checkpoint whose run evaluates them; None where it evaluates the
    others."""
    decay = ((checkpoint.manifest.get("config") or {}).get("finetune") or {}).get("ema")
    return file_of(checkpoint.folder.absolute().parents[1], checkpoint.progress.step) if decay else None
