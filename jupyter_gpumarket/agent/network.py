"""Where this node is: which loopback it is on (nodes that share one need no help), and its addresses for others."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import socket
from pathlib import Path

import psutil

CARDS = Path("/sys/class/net")


def loopback_id(cards_at: Path = CARDS) -> str:
    """The same text for processes that share a loopback, another one for all others; empty where it cannot be told.

    The kernel's boot and the network namespace name it. Machines that were cloned while they ran share both, so the
    addresses of their network cards count as well; not those without hardware, which come and go with containers and
    tunnels, so that two agents that began at different times would be told apart.
    """
    try:
        namespace = os.stat("/proc/self/ns/net")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
    cards = []
    for card in sorted(cards_at.glob("*/address")):
        with contextlib.suppress(OSError):
            (card.parent / "device").stat()
            cards.append(f"{card.parent.name} {card.read_text('ascii').strip()}")
    told = "\n".join([boot, f"{namespace.st_dev}:{namespace.st_ino}", *cards])
    return hashlib.sha256(told.encode()).hexdigest()[:32]


# Cards that lead to this machine's own guests and nowhere else.
INNER = ("lo", "docker", "br-", "veth", "virbr", "cni", "flannel", "cali", "lxc", "podman")


def own_addresses() -> list[str]:
    """Addresses of this node at which another one may find it, those of its default kind first.

    What leads nowhere from outside is left out: loopback, link-local and multicast addresses, and the bridges to
    containers of this machine.
    """
    cards = psutil.net_if_stats()
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for name, addresses in psutil.net_if_addrs().items():
        if name.startswith(INNER) or (name in cards and not cards[name].isup):
            continue
        for told in addresses:
            if told.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            with contextlib.suppress(ValueError):
                address = ipaddress.ip_address(told.address.partition("%")[0])
                if not (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified):
                    found.append(address)
    return [str(address) for address in sorted(found, key=lambda address: address.version)]
