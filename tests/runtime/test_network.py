"""Hosts meet on the interface of the route to rank 0, whatever their names resolve to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tgm_scale.runtime import network

ROOT = Path(__file__).parents[2]
ADDRESSES = ("10.211.97.1", "10.211.97.2")

WORKER = """
import sys, torch.distributed as dist
from tgm_scale.runtime.distributed import HostCollectives, find_process, set_rendezvous
from tgm_scale.runtime.rendezvous import meet
from datetime import timedelta
process = find_process()
set_rendezvous(process)
store = meet(process, 30)
dist.init_process_group("gloo", store=store, rank=process.rank, world_size=2, timeout=timedelta(seconds=10))
print(HostCollectives(process).gather(process.rank), flush=True)
dist.destroy_process_group()
"""


def test_the_route_tells_the_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.interface_to("127.0.0.1", several_hosts=False) == "lo"
    assert network.interface_to("no-such-host.invalid", several_hosts=True) is None
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and psutil.net_if_stats()[name].isup:
                assert network.interface_to(address.address, several_hosts=False) == name
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    network.choose_interface("192.0.2.7", several_hosts=True)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "lo", "the user's choice stays"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def two_hosts() -> Iterator[list[str]]:
    """Two network namespaces joined by a cable, as two hosts have it; their names resolve to nothing."""
    names = [f"tgm{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here (needs root and iproute2): {error}")
    try:
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, ADDRESSES):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", name)
            for device in ("lo", name):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


def test_hosts_whose_names_do_not_resolve_meet(two_hosts: list[str]) -> None:
    master = {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29511", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", f'hostname nowhere{rank}; exec "$@"', "sh"]
            + [sys.executable, "-c", WORKER],
            env={**os.environ, **master, "RANK": str(rank), "LOCAL_WORLD_SIZE": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, name in enumerate(two_hosts)
    ]
    for process in processes:
        said, _ = process.communicate(timeout=90)
        assert process.returncode == 0 and "[0, 1]" in said, said
