"""Addresses out of the `ssh …` command lines that marketplaces tell. They are read, never run."""

from __future__ import annotations

import ipaddress
import re

from jupyter_gpumarket.models import NodeAddress

LONGEST = 400
TARGET = re.compile(r"([a-z_][a-z0-9_-]{0,31})@(\[[0-9a-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]{0,252})", re.ASCII)
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*", re.ASCII)
# Options with a value of their own that says nothing about where the node is.
WITH_VALUE = ("-i", "-o")


def address_in(command: str | None) -> NodeAddress | None:
    """Where `[ssh] [-p PORT] user@host [-p PORT]` leads; None for anything else."""
    if not command or len(command) > LONGEST:
        return None
    words = command.split()
    if words and words[0] == "ssh":
        del words[0]
    target, port = None, 22
    while words:
        word = words.pop(0)
        if word in WITH_VALUE and words:
            words.pop(0)
        elif word == "-p" and words:
            port = _port(words.pop(0))
        elif target is None and (found := TARGET.fullmatch(word)):
            target = found.groups()
        else:
            return None
    if target is None or not port or not is_host(target[1].strip("[]")):
        return None
    return NodeAddress(host=target[1].strip("[]"), port=port, user=target[0])


def is_host(text: str) -> bool:
    """Whether it is an IP address or a host name, and nothing else."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return len(text) <= 253 and NAME.fullmatch(text) is not None
    return True


def _port(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 and int(text) < 65536 else 0
