"""Inputs by content: a file for each SHA-256, whole or absent.

A large file of the user's is linked and not copied. It can be changed in place afterwards, so it counts only as long as
its size and time are those that it had then (`<sha256>.of` holds them), and the node checks its hash as it checks all.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
import time
from pathlib import Path

from jupyter_gpumarket.codecs.hashing import write_in_steps
from jupyter_gpumarket.config import private_folder, write_private
from jupyter_gpumarket.errors import BadRequest

SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_BLOB_BYTES = 8 * 1024**3
KEPT_S = 7 * 24 * 3600.0
# From here on a user's file is linked; copying and hashing a smaller one takes no time.
LINKED_BYTES = 16 * 1024 * 1024


OF = ".of"
CHANGED = "a file that was put has been changed since: put it again"


class BlobStore:
    """The folder of inputs."""

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        for part in self._folder.glob("*.part"):
            part.unlink()
        # Two doors may give the same file at once.
        self._linking = threading.Lock()

    def path(self, sha256: str) -> Path:
        """Where a blob lies.

        Raises:
            BadRequest: not a SHA-256 in hexadecimal.
        """
        if not SHA256.fullmatch(sha256):
            raise BadRequest(f"sha256: {sha256[:100]!r} is not a SHA-256 in lower-case hexadecimal")
        return self._folder / sha256

    def has(self, sha256: str) -> bool:
        """Whether the blob is here, whole. A linked file that was changed since is let go."""
        target = self.path(sha256)
        if not target.exists():
            return False
        record = self._record(sha256)
        if not record.exists() or record.read_text("ascii") == _looks(target):
            return True
        self._let_go(target)
        return False

    def check(self, sha256: str) -> None:
        """Look at the bytes of a blob that is a linked file of the user's; blocks. Others were looked at as they came.

        Raises:
            BadRequest: they are not what the address says.
        """
        target = self.path(sha256)
        if not self._record(sha256).exists() or not target.exists():
            return
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            self._let_go(target)
            raise BadRequest(CHANGED)

    def writer(self, sha256: str) -> BlobWriter:
        """For a new blob, piece by piece."""
        return BlobWriter(self.path(sha256), sha256)

    def adopt(self, sha256: str, source: Path) -> int:
        """Take a blob from a file of this user; returns its size. Blocks.

        A file that is named by its hash is one of our own store, never changed in place: it is linked, not copied, and
        the node checks it at its end of the way as it checks all. So is a large file of the user's, see above.

        Raises:
            BadRequest: no plain file, or its bytes are not what the address says.
        """
        target = self.path(sha256)
        if self.has(sha256):
            return target.stat().st_size
        if not source.is_absolute() or not source.is_file():
            raise BadRequest("path: no such file")
        source = source.resolve()
        size = source.stat().st_size
        is_own = source.name == sha256
        if is_own or LINKED_BYTES <= size <= MAX_BLOB_BYTES:
            with contextlib.suppress(OSError), self._linking:  # on another disk, or not this user's: it is copied
                if not self.has(sha256):
                    self._link(source, target, is_own=is_own)
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
            found = path.stat()
            # Linking a file does not change its time, but the other one.
            is_old = time.time() - max(found.st_mtime, found.st_ctime) > KEPT_S
            if is_old and path.suffix != OF and path.name not in in_use:
                self._let_go(path)

    def _record(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{OF}"

    def _link(self, source: Path, target: Path, *, is_own: bool) -> None:
        if not is_own:
            # Before the link: without a record a blob counts whatever its file looks like.
            write_private(self._record(target.name), _looks(source).encode("ascii"))
        try:
            os.link(source, target)
        except OSError:
            self._record(target.name).unlink(missing_ok=True)
            raise

    def _let_go(self, target: Path) -> None:
        target.unlink(missing_ok=True)
        self._record(target.name).unlink(missing_ok=True)


def _looks(path: Path) -> str:
    """What changes when somebody writes into a file."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


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
        write_in_steps(self._file, data)

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
        self._path.with_name(self._path.name + OF).unlink(missing_ok=True)
        self._part.replace(self._path)
        return self._size

    def abandon(self) -> None:
        """Throw away what has come."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()
