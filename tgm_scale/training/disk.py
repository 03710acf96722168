"""Whether a run can write its checkpoints, found out before the first step instead of at the first checkpoint."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from tgm_scale.config import Config
from tgm_scale.training import build
from tgm_scale.training.checkpoint import Retention, steps_in

_BYTES = 12  # of a parameter: its fp32 weight and two moments


def check_room(config: Config, decoder: bool = True) -> None:
    """Try to write into the folder of checkpoints, where there is one, and see that those to come have room. Raises
    ValueError.

    decoder: whether the run's model has one."""
    folder = Path(config.run.dir)
    checkpoints = folder / "checkpoints"
    if checkpoints.exists():
        _try_writing(checkpoints)
    wanted = _BYTES * _parameters(config, decoder) * _more(config, steps_in(checkpoints))
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ValueError(
            f"run.dir={folder}: {free / 1e9:.1f} GB free, its checkpoints take {wanted / 1e9:.1f} GB: make room, or "
            "lower checkpoint.keep"
        )


def _more(config: Config, there: list[int]) -> int:
    """Checkpoints at once beside those that are there: the newest that stay and one in writing, less those that they
    take the place of; no more than the run has still to write."""
    kept = Retention(1, config.checkpoint.keep_every)  # beside the newest: multiples, which stay for good
    replaced = len(kept.dropped(there)) + bool(there)
    more = max(1, config.checkpoint.keep + 1 - replaced)
    if config.train.steps is None:
        return more
    left = config.train.steps - max(there, default=0)
    return min(more, -(-left // config.checkpoint.every))


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


def _parameters(config: Config, decoder: bool) -> int:
    """Those of the blocks: 98 % of all."""
    size = build.model_size(config)
    blocks = [(size.width, size.mlp, size.depth)]
    blocks += [(size.decoder_width, size.decoder_mlp, size.decoder_depth)] if decoder else []
    return sum(depth * (4 * width**2 + 2 * width * hidden) for width, hidden, depth in blocks)
