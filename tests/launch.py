"""Starting real processes in tests: alone, as ranks or under torchrun, with a time limit and their output."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from starts import Started, wait_for_all

ROOT = Path(__file__).parents[1]


def command(world_size: int, *arguments: str) -> list[str]:
    """The command line that runs `python *arguments` in `world_size` processes."""
    if world_size == 1:
        return [sys.executable, *arguments]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world_size)]
    return [*launcher, *arguments]


def environment() -> dict[str, str]:
    """That of a user's shell on a CPU machine, with one thread a process: two cores serve four ranks."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def finished(
    arguments: Sequence[str], env: Mapping[str, str] | None = None, seconds: float = 300, folder: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """`python *arguments`, whatever its exit code is. env: default is `environment()`."""
    process = Started(arguments, environment() if env is None else env, folder)
    try:
        code = process.wait(seconds)
    finally:
        process.kill()
    return subprocess.CompletedProcess(process.args, code, *process.communicate())


def answers(worker: str, folder: Path, world_size: int, cases: dict[str, dict], seconds: int = 300) -> dict[str, dict]:
    """What a worker of steps finds of each case, in `world_size` processes."""
    listing, out = folder / f"cases{world_size}.json", folder / f"results{world_size}.json"
    listing.write_text(json.dumps(cases))
    run(world_size, [worker, str(listing), str(out)], seconds=seconds)
    return json.loads(out.read_text())


def run(
    world_size: int, arguments: Sequence[str], code: int = 0, seconds: int = 300, anew: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run and check the exit code; returns the finished process with its output.

    anew: as a user starts it, by a new interpreter or torchrun, which has a code of its own for ranks that failed. On
    GPUs always: a process with CUDA in it cannot be forked."""
    if anew or os.environ.get("TGM_TEST_GPU") == "1":
        line = command(world_size, *arguments)
        done = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=seconds, cwd=ROOT)
    elif world_size == 1:
        done = finished(arguments, environment(), seconds)
    else:
        ranks = [Started(arguments, variables, ROOT) for variables in of_ranks(world_size)]
        found = wait_for_all(ranks, seconds)
        printed = ["".join(parts) for parts in zip(*(rank.communicate() for rank in ranks))]
        done = subprocess.CompletedProcess(list(arguments), found, *printed)
    assert done.returncode == code, f"exit {done.returncode}, wanted {code}:\n{done.stdout}\n{done.stderr}"
    return done


def of_ranks(world_size: int) -> list[dict[str, str]]:
    """The environment of each process, with the variables that torchrun would set."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    size = str(world_size)
    met = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    return [{**environment(), **met, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(world_size)]
