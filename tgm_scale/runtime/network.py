"""The network interface that the hosts of a run meet on.

gloo binds to what the host's own name resolves to, and to the loopback where it resolves to nothing: then every host
listens where no other can reach it. The route to rank 0's address tells the interface without any name.
"""

from __future__ import annotations

import ipaddress
import os
import socket

import psutil

_ELSEWHERE = "192.0.2.1"  # an address of no host (RFC 5737): its route is the default one
_GLOO = "GLOO_SOCKET_IFNAME"


def choose_interface(address: str, several_hosts: bool) -> None:
    """Set GLOO_SOCKET_IFNAME to the interface by which this host reaches `address`, where the user has not set it and
    it can be told. Raises ValueError for an interface of the user's that this host does not have.

    NCCL's choice is left to NCCL: NCCL_SOCKET_IFNAME is the user's alone."""
    given = os.environ.get(_GLOO)
    if given is None:
        if (found := interface_to(address, several_hosts)) is not None:
            os.environ[_GLOO] = found
        return
    names = psutil.net_if_addrs()
    if missing := [name for name in given.split(",") if name not in names]:
        raise ValueError(f"{_GLOO}={given}: this host has no {missing[0]!r}; it has: {', '.join(names)}")


def interface_to(address: str, several_hosts: bool) -> str | None:
    """The interface by which this host reaches another; None where that cannot be told.

    several_hosts: whether others must reach this one by it: a name that is the loopback here (as Debian writes the
    host's own into /etc/hosts) then counts for nothing, and the interface of the default route is taken."""
    here = _own_address_towards(address)
    if several_hosts and address != here and here is not None and ipaddress.ip_address(here).is_loopback:
        here = _own_address_towards(_ELSEWHERE) or here
    for name, addresses in psutil.net_if_addrs().items():
        if here in [entry.address.partition("%")[0] for entry in addresses]:
            return name
    return None


def free_port() -> int:
    """A port of the loopback that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _own_address_towards(address: str) -> str | None:
    """This host's own address on the way to another: a datagram socket is routed when it is connected, and sends
    nothing."""
    try:
        found = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, target in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.connect(target)
                return str(probe.getsockname()[0]).partition("%")[0]
        except OSError:
            continue
    return None
