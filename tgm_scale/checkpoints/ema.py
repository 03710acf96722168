"""An exponential average of a classifier's weights, stored next to its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from tgm_scale.checkpoints import beside
from tgm_scale.checkpoints.checkpoint import Reader

_NAME = "ema"


def file_of(folder: Path, step: int) -> Path:
    return beside.file_of(folder, _NAME, step)


class Average:
    """decay * average + (1 - decay) * weight after each update, in float32, the same on each process.

    weights: gives (name, float32 weight) anew at each call, what Adam updates: a bf16 copy would be rounded by up to
    0.2 %, and does not move at all by less. Collective where `weights` is."""

    def __init__(self, weights: Callable[[], Iterable[tuple[str, Tensor]]], decay: float, folder: Path) -> None:
        self._weights, self._decay, self._folder = weights, decay, folder
        self._values = {name: value.detach().float().clone() for name, value in weights()}

    @torch.no_grad()
    def update(self) -> None:
        for name, value in self._weights():
            self._values[name].lerp_(value.detach().float(), 1 - self._decay)

    def write(self, step: int, retained: list[int]) -> None:
        """As `beside.write`."""
        beside.write(self._folder, _NAME, step, retained, self._values)

    def read(self, step: int) -> None:
        """Continue from the average of a checkpoint. Raises ValueError where it is none of this model."""
        found = read(self._folder, step)
        if {name: value.shape for name, value in found.items()} != {
            name: value.shape for name, value in self._values.items()
        }:
            raise ValueError(f"{file_of(self._folder, step)}: weights of another model: restore this run's")
        for name, value in found.items():
            self._values[name].copy_(value)


def read(folder: Path, step: int) -> dict[str, Tensor]:
    file = file_of(folder, step)
    if not file.is_file():
        raise ValueError(f"{file}: missing; finetune.ema cannot be switched on in the middle of a run")
    return beside.read(file)


def averaged_file(checkpoint: Reader) -> Path | None:
    """The file of the averaged weights, of a checkpoint whose run tests them; None where it tests the others."""
    decay = ((checkpoint.manifest.get("config") or {}).get("finetune") or {}).get("ema")
    return file_of(checkpoint.folder.absolute().parents[1], checkpoint.progress.step) if decay else None
