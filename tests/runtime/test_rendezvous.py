"""Processes that do not find one another say so, and end in time; those that were wrongly started are refused."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore

ROOT = Path(__file__).parents[2]
WORKER = """
import os, sys
from tgm_scale.runtime import rendezvous
from tgm_scale.runtime.command import exit_code
from tgm_scale.runtime.distributed import find_process, set_rendezvous
rendezvous.REPORT_AFTER = 1.0
def main():
    process = find_process()
    set_rendezvous(process)
    store = rendezvous.meet(process, float(sys.argv[1]), os.environ.get("CARD"))
    store.set(f"left/{process.rank}", "")
    if process.is_main:  # holds the store: it leaves last, and nobody asks it for anything after `left`
        store.wait([f"left/{rank}" for rank in range(process.world_size)])
    print("met", flush=True)
    return 0
sys.exit(exit_code("worker", main))
"""


def free_port() -> int:
    """Outside of the ephemeral range, in which a client that waits for a server may connect to itself."""
    while True:
        port = random.randrange(20000, 30000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start(seconds: float, port: int, rank: int, **variables: str) -> subprocess.Popen[str]:
    launched = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(seconds)],
        env={**os.environ, **launched, **master, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    output, _ = process.communicate(timeout=90)
    assert process.returncode == code, output
    return output


def test_a_rank_that_is_alone_says_whom_it_waits_for_and_ends() -> None:
    port = free_port()
    one, other = start(3, port, 1), start(3, free_port(), 0)
    said = ended(one, 1)
    assert "frame #" not in said
    waits = f"rank 1 on {os.uname().nodename} has waited"
    assert said.count(waits) >= 2 and f"for rank 0 at 127.0.0.1:{port} (at most faults.start_seconds=3)" in said
    assert f"it believed RANK=1, WORLD_SIZE=2, LOCAL_RANK=1, MASTER_ADDR=127.0.0.1, MASTER_PORT={port}" in said
    assert "for ranks 1, more than faults.start_seconds=3 allows" in ended(other, 1)


def test_ranks_that_share_a_gpu_are_refused_and_others_meet() -> None:
    port, another = free_port(), free_port()
    sharing = [start(60, port, rank, CARD="GPU-5") for rank in (0, 1)]
    fine = [start(60, another, rank, CARD=f"GPU-{rank}") for rank in (0, 1)]
    for process in sharing:
        assert "ranks 0, 1 on " in (said := ended(process, 2)) and "were given one GPU (GPU-5)" in said
    for process in fine:
        assert "met" in ended(process, 0)


def test_two_processes_of_one_rank_are_refused() -> None:
    port = free_port()
    agent = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)  # as torchrun's
    one = start(60, port, 1, TORCHELASTIC_USE_AGENT_STORE="True")
    try:
        agent.wait(["attempt 0/came/1"], timedelta(seconds=60))
        said = ended(start(60, port, 1, TORCHELASTIC_USE_AGENT_STORE="True"), 2)
        assert "two processes are rank 1 of 2: RANK=1, WORLD_SIZE=2" in said
    finally:
        one.kill()
        one.communicate()
