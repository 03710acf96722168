"""Rendezvous of a run's processes at rank 0, with a timeout and with messages about missing processes.

Each process connects to rank 0's store (under torchrun: its agent's), registers there, and continues when rank 0 has
seen all. A waiting process prints for whom and where it waits, and the variables it used."""

from __future__ import annotations

import os
import platform
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from tgm_scale.runtime import launch
from tgm_scale.runtime.distributed import ProcessInfo

REPORT_AFTER = 20.0  # seconds of waiting; a start of 64 processes on one host takes 5
SHARED_GPU = "were given one GPU"  # in the message of a start with too few GPUs
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_OPTIONAL_VARIABLES = ("SLURM_PROCID", "SLURM_NTASKS", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LOOK = 0.2  # seconds between attempts to reach rank 0
_NAMED = 8  # ranks or hosts to name, if there are many


def meet(process: ProcessInfo, seconds: float, gpu: str | None = None) -> dist.Store:
    """Return the store of all processes of the run, once all have registered, after `set_rendezvous`.

    gpu: unique name of this process's GPU. Raises TimeoutError where some did not come within `seconds`, and
    ValueError: on every rank where two share a GPU; on the later of two processes with the same rank (the others then
    wait in vain for the missing rank, and name it)."""
    if process.world_size == 1:
        return connect(process, seconds)
    waiting = _Waiting(process, seconds)
    store = _connected(process, waiting)
    if store.add(f"came/{process.rank}", 1) > 1:
        raise ValueError(f"two processes are rank {process.rank} of {process.world_size}: {launch_variables()}")
    store.set(f"at/{process.rank}", f"{platform.node()} {gpu or ''}")
    if process.is_main:
        _wait_for_all(store, process, waiting)
        store.set("verdict", _shared_gpus(store, process.world_size))
    else:
        waiting.until(store, ["verdict"], lambda: "rank 0, which waits for other ranks: see what it says")
    if verdict := store.get("verdict").decode():
        store.set(f"read/{process.rank}", "")
        if process.is_main:  # rank 0's exit would take the store from ranks that have not read yet
            with suppress(dist.DistError):
                store.wait([f"read/{rank}" for rank in range(process.world_size)], timedelta(seconds=10))
        raise ValueError(verdict)
    return dist.PrefixStore("run", store)


def launch_variables() -> str:
    """Return the variables that identify this process and rank 0's address."""
    names = (*_VARIABLES, *(name for name in _OPTIONAL_VARIABLES if name in os.environ))
    return ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)


class _Waiting:
    """Waiting with a limit, and with reports on whom it waits for."""

    def __init__(self, process: ProcessInfo, seconds: float):
        self.process, self.seconds = process, seconds
        self._began = time.monotonic()
        self._slice = min(REPORT_AFTER, max(0.5, seconds / 2))

    def next(self) -> timedelta:
        """Return how long to wait until the next report."""
        return timedelta(seconds=max(0.1, min(self._slice, self._began + self.seconds - time.monotonic())))

    def report(self, whom: str) -> None:
        """Report whom this rank waits for. Raises TimeoutError when the time is over."""
        waited = time.monotonic() - self._began
        text = f"rank {self.process.rank} on {platform.node()} has waited {waited:.0f} s for {whom}"
        if waited + 0.2 > self.seconds:
            raise TimeoutError(
                f"{text}, more than faults.start_seconds={self.seconds:g} allows; it believed {launch_variables()}. "
                "Unset what is left from another start, or see why they did not come"
            )
        sys.stderr.write(f"{text} (at most faults.start_seconds={self.seconds:g}); it believes {launch_variables()}\n")
        sys.stderr.flush()

    def while_not(self, condition: Callable[[], bool], whom: str) -> None:
        """Wait for a condition. Raises TimeoutError as `report` does."""
        reported = time.monotonic()
        while not condition():
            if time.monotonic() - reported > self.next().total_seconds():
                reported = time.monotonic()
                self.report(whom)
            time.sleep(_LOOK)

    def until(self, store: dist.Store, keys: list[str], whom: Callable[[], str]) -> None:
        """Wait for keys of the store. Raises TimeoutError as `report` does."""
        while True:
            try:
                return store.wait(keys, self.next())
            except dist.DistError:
                self.report(whom())


def connect(process: ProcessInfo, seconds: float) -> dist.Store:
    """Return rank 0's store, without a rendezvous. Raises TimeoutError where it does not answer within `seconds`,
    OSError where it cannot be opened or belongs to others."""
    if process.world_size == 1:
        return dist.HashStore()  # no port, which another process may take meanwhile
    return _connected(process, _Waiting(process, seconds))


def _connected(process: ProcessInfo, waiting: _Waiting) -> dist.Store:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if process.is_main and not agent:
        try:
            return dist.TCPStore(address, port, process.world_size, True, waiting.next(), wait_for_workers=False)
        except dist.DistError as error:
            why = str(error).splitlines()[0]
            if "in use" in why.lower() or "EADDRINUSE" in why:
                remedy = f"MASTER_PORT={port} cannot be used on {platform.node()} ({why}): set it to a free port"
            else:
                remedy = f"MASTER_ADDR={address} is not this host, {platform.node()}, where rank 0 is ({why}): set it"
            raise OSError(f"{remedy}, the same for all processes") from None
    waiting.while_not(lambda: _answers(address, port), f"rank 0 at {address}:{port}")
    try:
        store = dist.TCPStore(
            address, port, process.world_size, False, timedelta(seconds=waiting.seconds), wait_for_workers=False
        )
    except dist.DistError as error:
        raise OSError(
            f"what answers at {address}:{port} is no store of rank 0 ({str(error).splitlines()[0]})"
        ) from None
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt {attempt}", store) if agent else store


def _answers(address: str, port: int) -> bool:
    """Return whether anything listens there: torch's own store would print a page of native frames at each attempt."""
    try:
        with socket.create_connection((address, port), timeout=5) as probe:
            return probe.getsockname() != probe.getpeername()  # with ephemeral ports, one may connect to itself
    except OSError:
        return False


def _wait_for_all(store: dist.Store, process: ProcessInfo, waiting: _Waiting) -> None:
    keys = [f"at/{rank}" for rank in range(process.world_size)]

    def missing() -> str:
        absent = [rank for rank, key in enumerate(keys) if not store.check([key])]
        nodes = dict.fromkeys(launch.node_of(rank, process.world_size) for rank in absent)
        hosts = f" on {', '.join(list(nodes)[:_NAMED])}" if "SLURM_JOB_NODELIST" in os.environ else ""
        more = f" and {len(absent) - _NAMED} more" if len(absent) > _NAMED else ""
        return f"ranks {', '.join(map(str, absent[:_NAMED]))}{more}{hosts}"

    waiting.until(store, keys, missing)


def _shared_gpus(store: dist.Store, world_size: int) -> str:
    """Return an error message where several ranks share a GPU, else ""."""
    ranks = defaultdict(list)
    for rank in range(world_size):
        host, _, gpu = store.get(f"at/{rank}").decode().partition(" ")
        if gpu:
            ranks[host, gpu].append(rank)
    for (host, gpu), of in ranks.items():
        if len(of) > 1:
            return (
                f"ranks {', '.join(map(str, of[:_NAMED]))} on {host} {SHARED_GPU} ({gpu}): start as many "
                "processes a host as it has GPUs, or correct CUDA_VISIBLE_DEVICES"
            )
    return ""
