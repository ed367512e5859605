"""One SSH key pair for each lease: made when it rents, wiped when it ends, and never used for anything else."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jupyter_gpumarket.config import private_folder, write_private

_LEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class KeyStore:
    """Private keys as 0600 files named by lease, in a folder that only its owner can enter."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)

    def create(self, lease_id: str) -> str:
        """Make a fresh ed25519 pair in place of any earlier one; returns the public key line (OpenSSH format)."""
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        write_private(self.path(lease_id), private)
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        return f"{public.decode()} {lease_id}"

    def path(self, lease_id: str) -> Path:
        """Where the lease's private key lies.

        Raises:
            ValueError: not a lease's id, so it must not become a file's name.
        """
        if not _LEASE_ID.fullmatch(lease_id):
            raise ValueError(f"not a lease id: {lease_id!r}")
        return self._folder / lease_id

    def wipe(self, lease_id: str) -> None:
        """Overwrite and remove the private key. Idempotent."""
        path = self.path(lease_id)
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.write(b"\0" * size)
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
