"""Names of our rentals on a marketplace's account, which we alone can make.

A label is random and bears a MAC of this installation, so that a rental is known as ours without any list, and a
colleague's on the same account never is: not by prefix, not by a label that looks like one of ours. Base 32 in lower
case and 48 characters, because some marketplaces take DNS labels only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import random
import re

PREFIX = "gpum"
_SHAPE = re.compile(rf"{PREFIX}-([a-z2-7]{{26}})-([a-z2-7]{{16}})")


def new_label(secret: bytes, rng: random.Random) -> str:
    """A label that nobody has used: 128 random bits. In production `rng` is the system's own generator."""
    nonce = _base32(rng.getrandbits(128).to_bytes(16, "big"))
    return f"{PREFIX}-{nonce}-{_mac(secret, nonce)}"


def is_ours(secret: bytes, label: str) -> bool:
    """Whether this installation made the label."""
    match = _SHAPE.fullmatch(label)
    return match is not None and hmac.compare_digest(match[2], _mac(secret, match[1]))


def _mac(secret: bytes, nonce: str) -> str:
    return _base32(hmac.digest(secret, f"{PREFIX}-label-{nonce}".encode(), hashlib.sha256)[:10])


def _base32(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()
