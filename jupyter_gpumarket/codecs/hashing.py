"""Hashing beside writing: each of them takes as long as the other for large data."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable
from queue import Queue
from typing import IO

# So many pieces may wait to be hashed.
WAITING_PIECES = 4


def copy_hashed(pieces: Iterable[bytes], file: IO[bytes]) -> tuple[int, str]:
    """Write pieces into a file while another thread hashes them; how many bytes, and their SHA-256.

    Raises:
        OSError: the disk.
    """
    digest, size = hashlib.sha256(), 0
    waiting: Queue[bytes | None] = Queue(WAITING_PIECES)

    def work() -> None:
        while (piece := waiting.get()) is not None:
            digest.update(piece)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for piece in pieces:
            waiting.put(piece)
            file.write(piece)
            size += len(piece)
    finally:
        waiting.put(None)
        thread.join()
    return size, digest.hexdigest()
