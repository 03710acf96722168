"""Starting real processes in tests: alone or under torchrun, with a time limit and their output in the failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def command(world_size: int, *arguments: str) -> list[str]:
    """The command line that runs `python *arguments` in `world_size` processes."""
    if world_size == 1:
        return [sys.executable, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    return [*launcher, *arguments]


def environment() -> dict[str, str]:
    """That of a user's shell on a CPU machine, with one thread a process: two cores serve four ranks."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(
    world_size: int, arguments: Sequence[str], code: int = 0, seconds: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run and check the exit code; returns the finished process with its output."""
    done = subprocess.run(
        command(world_size, *arguments), env=environment(), capture_output=True, text=True, timeout=seconds, cwd=ROOT
    )
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}:\n{done.stdout}\n{done.stderr}"
    return done
