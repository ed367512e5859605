"""Inputs by content: a file for each SHA-256, whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

from jupyter_gpumarket.config import private_folder
from jupyter_gpumarket.errors import BadRequest

SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_BLOB_BYTES = 8 * 1024**3
KEPT_S = 7 * 24 * 3600.0


class BlobStore:
    """The folder of inputs."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        for part in self._folder.glob("*.part"):
            part.unlink()

    def path(self, sha256: str) -> Path:
        """Where a blob lies.

        Raises:
            BadRequest: not a SHA-256 in hexadecimal.
        """
        if not SHA256.fullmatch(sha256):
            raise BadRequest(f"sha256: {sha256[:100]!r} is not a SHA-256 in lower-case hexadecimal")
        return self._folder / sha256

    def has(self, sha256: str) -> bool:
        """Whether the blob is here, whole."""
        return self.path(sha256).exists()

    def writer(self, sha256: str) -> BlobWriter:
        """For a new blob, piece by piece."""
        return BlobWriter(self.path(sha256), sha256)

    def adopt(self, sha256: str, source: Path) -> int:
        """Take a blob from a file of this user; returns its size. Blocks.

        A file that is named by its hash is one of our own store, never changed in place: it is linked, not copied, and
        the node checks it at its end of the way as it checks all.

        Raises:
            BadRequest: no plain file, or its bytes are not what the address says.
        """
        target = self.path(sha256)
        if target.exists():
            return target.stat().st_size
        if not source.is_absolute() or not source.is_file():
            raise BadRequest("path: no such file")
        if source.name == sha256:
            with contextlib.suppress(OSError):
                os.link(source, target)
                return target.stat().st_size
        writer = self.writer(sha256)
        try:
            with source.open("rb") as file:
                while piece := file.read(4 * 1024 * 1024):
                    writer.write(piece)
            return writer.finish()
        except BaseException:
            writer.abandon()
            raise

    def drop_old(self, in_use: set[str]) -> None:
        """Forget inputs that no open run needs and nobody sent for a week."""
        for path in self._folder.iterdir():
            if path.name not in in_use and time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()


class BlobWriter:
    """Takes a blob's bytes; `finish` checks them and makes the blob visible."""

    def __init__(self, path: Path, sha256: str) -> None:
        self._path = path
        self._sha256 = sha256
        self._part = path.with_name(f"{sha256}.{os.urandom(4).hex()}.part")
        descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        self._file = os.fdopen(descriptor, "wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes) -> None:
        """The next piece.

        Raises:
            BadRequest: more than a blob may hold.
        """
        self._size += len(data)
        if self._size > MAX_BLOB_BYTES:
            raise BadRequest(f"an input of more than {MAX_BLOB_BYTES:,} bytes; put it where the node can fetch it")
        self._hash.update(data)
        self._file.write(data)

    def finish(self) -> int:
        """Check the hash, make the blob durable and visible; returns its size.

        Raises:
            BadRequest: the bytes are not what the address says.
        """
        if self._hash.hexdigest() != self._sha256:
            raise BadRequest("sha256: the bytes that arrived have another SHA-256; send them again")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._part.replace(self._path)
        return self._size

    def abandon(self) -> None:
        """Throw away what has come."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()
