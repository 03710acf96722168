"""tests/training/step_worker.py with its made clips on the run's device: `python steps_on_device.py CASES OUT`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))

import step_worker
from worker import answer

from tgm_scale.runtime.distributed import find_process


def moved(value: Any, device: torch.device) -> Any:
    """A tensor, or a dataclass with tensors at any depth, on the device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    parts = {field.name: moved(getattr(value, field.name), device) for field in dataclasses.fields(value)}
    return dataclasses.replace(value, **parts)


if __name__ == "__main__":
    made, device = step_worker.prepared, find_process().device
    step_worker.prepared = lambda ids, tokens: moved(made(ids, tokens), device)
    answer(step_worker.results, sys.argv[2])
