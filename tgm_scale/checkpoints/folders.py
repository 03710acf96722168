"""Folders of a run's checkpoints, each named by its step. This module imports nothing heavy."""

from __future__ import annotations

import re
from pathlib import Path

MANIFEST = "manifest.json"  # written last: a folder without one is no checkpoint
_STEP = re.compile(r"step-(\d{8,12})")


def step_of(folder: Path) -> int | None:
    """Return the step in a checkpoint folder's name; None for a foreign name, such as step-00000030.bak."""
    found = _STEP.fullmatch(folder.name)
    return int(found[1]) if found and folder.name == f"step-{int(found[1]):08d}" else None


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def steps_in(root: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, ascending. Other names are ignored."""
    found = (step_of(file.parent) for file in root.glob(f"step-*/{MANIFEST}"))
    return sorted(step for step in found if step is not None)


def latest(root: Path) -> Path | None:
    steps = steps_in(root)
    return folder_of(root, steps[-1]) if steps else None
