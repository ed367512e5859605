"""Keys and algorithms of a link: what is offered, what is accepted, and in which order."""

from __future__ import annotations

from pathlib import Path

import asyncssh
from asyncssh.kex import get_kex_algs

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.nodes.address import shown

# AES-GCM alone: fastest in both implementations, and not open to prefix truncation (Terrapin) even where the server
# does not know strict key exchange.
ENCRYPTION = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_KEY_EXCHANGE = (
    "mlkem768x25519-sha256",
    "sntrup761x25519-sha512@openssh.com",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group-exchange-sha256",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
)
_HOST_KEYS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


def key_exchange() -> list[str]:
    """The safe methods that this machine's cryptography library has, best first."""
    here = {name.decode("ascii") for name in get_kex_algs()}
    return [name for name in _KEY_EXCHANGE if name in here]


def host_key_algorithms(pinned: asyncssh.SSHKey | None) -> list[str]:
    """Those of the pinned key first, so that a server with several keys shows that one.

    The others stay in the list: a server that shows another kind of key is told as changed, not as incompatible.
    """
    if pinned is None:
        return list(_HOST_KEYS)
    its_own = {name.decode("ascii") for name in pinned.sig_algorithms}
    return sorted(_HOST_KEYS, key=lambda name: name not in its_own)


def lease_key(path: Path) -> asyncssh.SSHKey:
    """The lease's private key. Read as a key and not by its path, so that no certificate beside it is offered too.

    Raises:
        NodeError: it is gone (the lease has ended) or not a key.
    """
    try:
        return asyncssh.import_private_key(path.read_bytes())
    except (OSError, asyncssh.KeyImportError) as error:
        raise NodeError(f"the lease's key cannot be read from {path}: {error}") from None


def public_key(line: str) -> asyncssh.SSHKey:
    """A host key from an OpenSSH public key line.

    Raises:
        NodeError: it is none; what the marketplace or the journal holds is not a key.
    """
    try:
        return asyncssh.import_public_key(line.strip())
    except (asyncssh.KeyImportError, ValueError) as error:
        raise NodeError(f"the recorded host key is not an OpenSSH public key: {shown(str(error))}") from None


def key_line(key: asyncssh.SSHKey) -> str:
    """The key as an OpenSSH public key line, without a comment."""
    return " ".join(key.export_public_key().decode("ascii").split()[:2])
