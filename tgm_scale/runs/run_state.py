"""Whether a run is active, how it ended if not, and the command that resumes it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from tgm_scale.runs import run_folder
from tgm_scale.runs.bottleneck import duration, read_heartbeat
from tgm_scale.runtime import ownership


def lines(
    root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]], finished: bool
) -> dict[str, str]:
    """For `tgm-scale status`. finished: all steps are made, and tested where that belongs to them."""
    sign = ownership.liveness(root)
    if sign is not None and sign.living:
        return {"state": f"running, last heartbeat {sign.age:.0f} s ago"}
    if finished:
        return {"state": "finished"}
    return {"state": f"not running: {_end(root, sign)}", "resume": _command(root, tree, world_size, starts)}


def _end(root: Path, sign: ownership.Liveness | None) -> str:
    """How the last start ended, as far as it is known."""
    if sign is None:
        return "no start has left word"
    ago = f"{duration(sign.age)} ago"
    if not sign.ended:
        if sign.gone and sign.owner is not None:
            return f"its process (pid {sign.owner.pid}) was killed, last heartbeat {ago}"
        return f"no heartbeat since {ago}"
    if why := run_folder.failure(root):
        return f"failed {ago}: {why}"
    state = read_heartbeat(root / "ranks" / "00000").get("state")
    return f"{'interrupted' if state in (None, 'running') else state} {ago}"


def _command(root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]]) -> str:
    """The command that resumes the run, in words."""
    same = "the command that started it"
    if starts and starts[-1].get("slurm_job"):
        return f"{same} (sbatch, as for job {starts[-1]['slurm_job']})"
    typed = command(root, tree, world_size, starts)
    return f"{same}, or: {typed}" if typed else same


def command(root: Path, tree: dict[str, Any], world_size: int, starts: list[dict[str, Any]]) -> str:
    """The command line that resumes the run; "" if the folder does not have it: a job's script, secrets in URLs."""
    file = root / "config.yaml"
    if (starts and starts[-1].get("slurm_job")) or "***" in file.read_text():
        return ""
    launcher = "tgm-scale" if world_size == 1 else f"torchrun --nproc_per_node {world_size} -m tgm_scale"
    own = Path(tree["run"]["dir"])
    elsewhere = [] if own.resolve() == root.resolve() else [f"run.dir={root}"]
    words = f"{'finetune' if 'finetune' in tree else 'pretrain'} --config"
    return f"{launcher} {words} {shlex.join([str(file), *elsewhere])}"
