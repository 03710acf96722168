"""The network interface on which the hosts of a run meet.

gloo binds to the address of the host's own name, and to the loopback where the name does not resolve: then every host
listens where no other can reach it. The route to rank 0's address identifies the interface without any name.
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
    it can be determined. Raises ValueError if the user's interface does not exist on this host.

    NCCL makes its own choice: only the user sets NCCL_SOCKET_IFNAME."""
    given = os.environ.get(_GLOO)
    if given is None:
        if (found := interface_to(address, several_hosts)) is not None:
            os.environ[_GLOO] = found
        return
    names = psutil.net_if_addrs()
    if missing := [name for name in given.split(",") if name not in names]:
        raise ValueError(f"{_GLOO}={given}: this host has no {missing[0]!r}; it has: {', '.join(names)}")


def interface_to(address: str, several_hosts: bool) -> str | None:
    """Return the interface by which this host reaches another; None where it cannot be determined.

    several_hosts: whether others must reach this host by it. Then a name that is the loopback here (as in Debian's
    /etc/hosts for the host's own) is ignored, and the interface of the default route is taken."""
    here = _own_address_towards(address)
    if several_hosts and address != here and here is not None and ipaddress.ip_address(here).is_loopback:
        here = _own_address_towards(_ELSEWHERE) or here
    for name, addresses in psutil.net_if_addrs().items():
        if here in [entry.address.partition("%")[0] for entry in addresses]:
            return name
    return None


def free_port() -> int:
    """Return a port of the loopback that is free at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _own_address_towards(address: str) -> str | None:
    """Return this host's own address on the route to another: connecting a datagram socket selects a route and sends
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
