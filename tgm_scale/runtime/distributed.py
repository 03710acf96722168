"""Rank, world size and device of this process, and host-side collectives for control decisions.

There are three kinds of start: torchrun (RANK, WORLD_SIZE, ...), srun (SLURM_PROCID, ...), or a plain `python`, which
is a run of one process. No other launcher, ssh or hostfile is needed.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tgm_scale.runtime import launch, network

_NO_DEVICE = ("", "-1", "NoDevFiles", "none", "void")  # of CUDA_VISIBLE_DEVICES, by users, SLURM and containers


@dataclass(frozen=True)
class ProcessInfo:
    """Rank, world size, local rank and device of this process."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def find_process() -> ProcessInfo:
    """Return this process's place in the run, from the environment of torchrun or srun, or alone.

    Raises ValueError for invalid variables, and for a process without a GPU where others have one."""
    found = launch.read(os.environ)
    return process_of(found, choose_device(found.local_rank, found.local_size, torch.cuda.device_count()))


def process_of(found: launch.Launch, index: int | None) -> ProcessInfo:
    """Return a process with the GPU of this index, or with the CPU for None."""
    device = torch.device("cpu") if index is None else torch.device("cuda", index)
    return ProcessInfo(found.rank, found.world_size, found.local_rank, device)


def choose_device(local_rank: int, local_size: int | None, visible: int) -> int | None:
    """Return the index of a process's GPU among those visible to it; None where none is.

    A process that sees one GPU takes it: the launcher assigned it (`srun --gpus-per-task=1`, `--gpu-bind=single`).
    local_size: processes on this host, None where unknown. Raises ValueError where there are too few GPUs."""
    if visible <= 1:
        return 0 if visible else None
    if local_rank >= visible or (local_size or 0) > visible:
        raise ValueError(
            f"{local_size or f'at least {local_rank + 1}'} processes on this host (LOCAL_RANK={local_rank}) and "
            f"{visible} GPUs that each sees (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'unset')}): "
            f"start one process a GPU (torchrun --nproc_per_node {visible}, sbatch --ntasks-per-node={visible}), or "
            "give each its own (srun --gpus-per-task=1)"
        )
    return local_rank


def refuse_hidden_gpus(process: ProcessInfo) -> None:
    """Raise ValueError where this process has GPUs and torch sees none: it would train on the CPU for days.

    A CUDA_VISIBLE_DEVICES that names no device is a choice of the CPU."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if process.device.type != "cpu" or (chosen is not None and chosen.strip() in _NO_DEVICE):
        return
    given = launch.gpus_of_job(os.environ)
    if given is None and "SLURM_JOB_ID" not in os.environ:  # a node's devices are visible to jobs without GPUs, too
        files = sorted(str(file) for file in Path("/dev").glob("nvidia[0-9]*") if os.access(file, os.R_OK | os.W_OK))
        given = f"this machine has {', '.join(files)}" if files else None
    if given is not None:
        raise ValueError(
            f"{given}, and torch {torch.__version__} sees no GPU (CUDA_VISIBLE_DEVICES={chosen or 'unset'}): a torch "
            "built without CUDA, a driver older than it wants, or a container without --nv / --gpus. To run on the "
            "CPU all the same, set CUDA_VISIBLE_DEVICES to nothing"
        )


def set_rendezvous(process: ProcessInfo) -> None:
    """Set the variables that torch.distributed and DeepSpeed read, where the launcher did not: the address of rank 0,
    and the interface on which the hosts meet. Raises ValueError where the address cannot be determined."""
    env = os.environ
    several = process.world_size > (launch.read(env).local_size or 1)
    # DeepSpeed takes LOCAL_RANK for the device index
    local = process.local_rank if process.device.index is None else process.device.index
    env.update(RANK=str(process.rank), WORLD_SIZE=str(process.world_size), LOCAL_RANK=str(local))
    if process.world_size == 1:  # whatever another start has left in the shell
        env.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(network.free_port()))
        return
    if "MASTER_ADDR" not in env:
        env["MASTER_ADDR"] = _slurm_address()
    if "MASTER_PORT" not in env:
        if "SLURM_JOB_ID" not in env:
            raise ValueError(
                f"WORLD_SIZE={process.world_size} and MASTER_ADDR={env['MASTER_ADDR']} without MASTER_PORT: set it to "
                "a free port of that host, the same for all processes, or start with torchrun or srun"
            )
        # one port for all ranks of a job, from its id, outside of the ephemeral range
        env["MASTER_PORT"] = str(20000 + launch.number(env, "SLURM_JOB_ID") % 10000)
    if not 0 < launch.number(env, "MASTER_PORT") < 2**16:
        raise ValueError(f"MASTER_PORT={env['MASTER_PORT']}: wanted a port from 1 to 65535")
    network.choose_interface(env["MASTER_ADDR"], several)


def _slurm_address() -> str:
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


class HostCollectives:
    """Small collectives over gloo, so that no control decision waits for the device.

    Every method is collective: all ranks call it, in the same order. With a single process it does nothing.

    seconds: timeout of a collective that a living process does not join; default: the 10 minutes of DeepSpeed's group
    where this one is gloo, too (on CPUs), else torch's 30. A process that died fails it at once."""

    def __init__(self, process: ProcessInfo, seconds: float | None = None):
        self.process = process
        self.group = None
        if process.world_size > 1 and (process.device.type == "cuda" or seconds is not None):
            self.group = dist.new_group(
                backend="gloo", timeout=None if seconds is None else timedelta(seconds=seconds)
            )

    def sum(self, values: list[float]) -> list[float]:
        """Return the sum over ranks of each value; exact for counts below 2**53."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def any(self, flag: bool) -> bool:
        return self._reduce([float(flag)], dist.ReduceOp.MAX)[0] > 0

    def _reduce(self, values: list[float], operation: Any) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64)
        if self.process.world_size > 1:
            dist.all_reduce(tensor, op=operation, group=self.group)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""
        if self.process.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value on every rank; the values of the others are ignored."""
        values = [value]
        if self.process.world_size > 1:
            dist.broadcast_object_list(values, src=0, group=self.group, device=torch.device("cpu"))
        return values[0]

    def barrier(self) -> None:
        if self.process.world_size > 1:
            dist.barrier(group=self.group)
