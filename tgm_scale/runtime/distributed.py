"""Which process of the run this is, and the host-side collectives that steer it.

A start is one of three: torchrun (RANK, WORLD_SIZE, ...), srun (SLURM_PROCID, ...), or a plain `python`, which is a
run of one process. No launcher of another kind, no ssh and no hostfile is needed.
"""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Place:
    """This process among those of the run."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def find_place() -> Place:
    """This process's place, read from the environment of torchrun or srun, or alone."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, world_size, local_rank = int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    elif "SLURM_STEP_ID" in env:  # only srun sets it: in a batch script SLURM_PROCID is 0 and says nothing
        rank, world_size, local_rank = (int(env[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"))
    else:
        rank, world_size, local_rank = 0, 1, 0
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    return Place(rank, world_size, local_rank, device)


def set_rendezvous(place: Place) -> None:
    """Fill in the variables that torch.distributed reads, where the launcher did not."""
    env = os.environ
    env.update(RANK=str(place.rank), WORLD_SIZE=str(place.world_size), LOCAL_RANK=str(place.local_rank))
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _slurm_address() if place.world_size > 1 else "127.0.0.1"
    if "MASTER_PORT" not in env:
        # one port for all ranks of a job, from its id, out of the way of the ephemeral range
        env["MASTER_PORT"] = (
            str(20000 + int(env["SLURM_JOB_ID"]) % 10000) if place.world_size > 1 else str(_free_port())
        )


def _slurm_address() -> str:
    """The address of the first node of the job: node names need not resolve, addresses do."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError("MASTER_ADDR is not set and there is no SLURM_JOB_NODELIST: start with torchrun or srun")
    first = _run("scontrol", "show", "hostnames", nodes).split()[0]
    for word in _run("scontrol", "show", "node", first).split():
        if word.startswith("NodeAddr="):
            return word.partition("=")[2]
    return first


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Control:
    """Small collectives between hosts, over gloo, so that no decision waits for the device.

    Every method is collective: all ranks call it, in the same order. Alone it does nothing."""

    def __init__(self, place: Place):
        self.place = place
        self.group = dist.new_group(backend="gloo") if place.world_size > 1 and place.device.type == "cuda" else None

    def sum(self, values: list[float]) -> list[float]:
        """The sum over ranks of each value; exact for counts below 2**53."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        return self._reduce([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def _reduce(self, values: list[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.place.world_size > 1:
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.place.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.place.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        if self.place.world_size > 1:
            dist.barrier(group=self.group)
