"""Which loopback this process is on: nodes of one machine may share it, and then need no help to reach each other."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path


def loopback_id() -> str:
    """The same text for processes that share a loopback, another one for all others; empty where it cannot be told.

    The kernel's boot and the network namespace name it. Machines that were cloned while they ran share both, so the
    addresses of their network cards count as well.
    """
    try:
        namespace = os.stat("/proc/self/ns/net")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""
    cards = []
    for card in sorted(Path("/sys/class/net").glob("*/address")):
        with contextlib.suppress(OSError):
            cards.append(f"{card.parent.name} {card.read_text('ascii').strip()}")
    told = "\n".join([boot, f"{namespace.st_dev}:{namespace.st_ino}", *cards])
    return hashlib.sha256(told.encode()).hexdigest()[:32]
