"""Addresses and words that come from marketplaces and nodes, checked before they are used or shown."""

from __future__ import annotations

import ipaddress
import re

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes.tunnel import is_usable

# A name as DNS has it; never a leading dash, space, quote, dollar or control character.
_HOST_NAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*\.?\Z"
)
_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.@-]{0,63}\Z")
MAX_WORDS = 300


def checked(address: NodeAddress) -> NodeAddress:
    """The address, if host, port and user look like a host, a port and a user.

    Raises:
        NodeError: names the field; what a marketplace answered is not an address.
    """
    if not (_is_ip(address.host) or _HOST_NAME.match(address.host)):
        raise NodeError(f"the marketplace's address has no usable host: {shown(address.host)}")
    if not 1 <= address.port <= 65535:
        raise NodeError(f"the marketplace's address has no usable port: {address.port}")
    if not _USER_NAME.match(address.user):
        raise NodeError(f"the marketplace's address has no usable user: {shown(address.user)}")
    if address.wss_url and not is_usable(address.wss_url):
        raise NodeError(f"the marketplace's address has no usable wss:// URL: {shown(address.wss_url)}")
    return address


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def shown(text: str | bytes, limit: int = MAX_WORDS) -> str:
    """A stranger's words, fit for a message: one line, printable, at most `limit` characters."""
    if isinstance(text, bytes):
        text = text[: 4 * limit].decode("utf-8", "replace")
    flat = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * limit]).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def last_lines(text: bytes, count: int = 12, limit: int = MAX_WORDS) -> str:
    """The last lines of a command's output, each cleaned as `shown` does."""
    lines = [shown(line, limit) for line in text[-count * 1000 :].splitlines()]
    return "\n".join([line for line in lines if line][-count:])
