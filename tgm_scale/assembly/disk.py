"""Check that a run can write its checkpoints, made before the first step instead of at the first checkpoint."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from tgm_scale.checkpoints.checkpoint import Retention
from tgm_scale.checkpoints.folders import steps_in
from tgm_scale.config.sections import CheckpointConfig


def check_room(folder: Path, kept: CheckpointConfig, steps: int | None, size: int) -> None:
    """Try to write into the run's folder of checkpoints, if it exists, and check that there is room for those to come.
    Raises ValueError.

    steps: of the run, where they are known; size: of a checkpoint, in bytes."""
    checkpoints = folder / "checkpoints"
    if checkpoints.exists():
        _try_writing(checkpoints)
    wanted = size * _more(kept, steps, steps_in(checkpoints))
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ValueError(
            f"run.dir={folder}: {free / 1e9:.3g} GB free, its checkpoints take {wanted / 1e9:.3g} GB: make room, or "
            "lower checkpoint.keep"
        )


def _more(kept: CheckpointConfig, steps: int | None, there: list[int]) -> int:
    """Return how many checkpoints exist at once beside those of `there`: the newest that stay and one being written,
    less those that they replace; no more than the run has still to write."""
    alone = Retention(1, kept.keep_every)  # besides the newest it keeps multiples, which stay for good
    replaced = len(alone.dropped(there)) + bool(there)
    more = max(1, kept.keep + 1 - replaced)
    if steps is None:
        return more
    left = steps - max(there, default=0)
    return min(more, -(-left // kept.every))


def _try_writing(folder: Path) -> None:
    probe = folder / f".probe-{platform.node()}-{os.getpid()}"
    try:
        probe.write_bytes(b"\0")
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"{folder}: checkpoints cannot be written there ({error.strerror}): give write access, or choose another "
            "run.dir"
        ) from None
