"""Takes a large input's bytes from its standard input into a file on the node, and hashes them while they come.

    python -m jupyter_gpumarket.agent.receive take FOLDER SHA256 SIZE STRIPES
    python -m jupyter_gpumarket.agent.receive join FOLDER SHA256 TOKEN NUMBER

The first form says how many bytes are there already and a token, takes the others, and says the SHA-256 of all of them.
With several stripes, each further one is a command of the second form on a channel of its own, which hands its standard
input to the first: the bytes come in pieces of `PIECE_BYTES`, the n-th piece by stripe n modulo their number. So a line
with a long round trip is full although the node's SSH server has but 2 MiB under way on one channel, and what has come
is always a beginning of the whole.

Standard library only and few modules, so that it starts quickly.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import queue
import secrets
import socket
import sys
import threading

# Both ends cut the bytes into these pieces.
PIECE_BYTES = 256 * 1024
BATCH_BYTES = 1024 * 1024
# Larger writes take memory in large pages, which on virtual machines are dear (`codecs.hashing` has the figures).
WRITE_BYTES = 64 * 1024
# At most so many batches wait to be hashed.
WAITING_BATCHES = 8
JOIN_PATIENCE_S = 30.0
F_SETPIPE_SZ = 1031


class Hash:
    """SHA-256 in a thread of its own, so that writing goes on meanwhile.

    The bytes come in buffers of its own, which are used again and again: new memory for each batch costs more than
    reading into it.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._waiting: queue.Queue[tuple[bytearray, int] | None] = queue.Queue()
        # The one that was hashed last is taken first: it is still in the processor's cache.
        self._free: queue.LifoQueue[bytearray] = queue.LifoQueue()
        for _ in range(WAITING_BATCHES):
            self._free.put(bytearray())
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def buffer(self, size: int) -> bytearray:
        """A buffer of at least this size; it comes back by `update`. Waits while all are in use."""
        free = self._free.get()
        return free if len(free) >= size else bytearray(size)

    def update(self, buffer: bytearray, size: int) -> None:
        """The next bytes are the first so many of a buffer; they must not change any more."""
        self._waiting.put((buffer, size))

    def hexdigest(self) -> str:
        """Of all that was given."""
        self._waiting.put(None)
        self._thread.join()
        return self._digest.hexdigest()

    def _work(self) -> None:
        while (given := self._waiting.get()) is not None:
            buffer, size = given
            self._digest.update(memoryview(buffer)[:size])
            self._free.put(buffer)


def receive(folder: str, sha256: str, size: int, stripes: int) -> int:
    """Take a blob; the exit code."""
    os.umask(0o077)
    os.chdir(f"{folder}/blobs")
    path = f"{sha256}.in"
    # By position: a receiver of a former connection that has not ended yet writes the same bytes in the same places.
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    have = min(os.fstat(file).st_size, size)
    token = secrets.token_hex(4)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(_door(sha256, token))
        door.listen(stripes)
        _say(f"{have} {token}")
        try:
            sources = _sources(door, stripes)
        finally:
            os.unlink(_door(sha256, token))
        digest = Hash()
        _hash_beginning(file, have, digest)
        if not _take(file, have, size, sources, digest):
            return 1
        found = digest.hexdigest()
        if found != sha256:
            os.unlink(path)
        _say(found)
    return 0


def join(folder: str, sha256: str, token: str, number: int) -> int:
    """Hand this process's standard input to the receiver, and stay until it has ended."""
    os.chdir(f"{folder}/blobs")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.connect(_door(sha256, token))
        socket.send_fds(door, [bytes([number])], [0])
        door.recv(1)
    return 0


def _door(sha256: str, token: str) -> str:
    return f"{sha256[:8]}.{token}.sock"


def _sources(door: socket.socket, stripes: int) -> list[int]:
    """What to read from in turn: our own standard input, and those of the other stripes."""
    sources = {0: 0}
    door.settimeout(JOIN_PATIENCE_S)
    while len(sources) < stripes:
        one, _ = door.accept()
        said, descriptors, _, _ = socket.recv_fds(one, 1, 1)
        sources[said[0]] = descriptors[0]
        one.detach()  # it stays open as long as this process lives: the other end waits for that
    for source in sources.values():
        with contextlib.suppress(OSError):  # no pipe, or no larger ones are allowed
            fcntl.fcntl(source, F_SETPIPE_SZ, BATCH_BYTES)
    return [sources[number] for number in range(stripes)]


def _hash_beginning(file: int, have: int, digest: Hash) -> None:
    at = 0
    while at < have:
        buffer = digest.buffer(BATCH_BYTES)
        came = os.preadv(file, [memoryview(buffer)[: min(BATCH_BYTES, have - at)]], at)
        digest.update(buffer, came)
        if not came:
            return
        at += came


def _take(file: int, at: int, size: int, sources: list[int], digest: Hash) -> bool:
    """Write what comes to its place; whether all came."""
    piece, number = (BATCH_BYTES, 0) if len(sources) == 1 else (PIECE_BYTES, 0)
    while at < size:
        wanted = min(piece, size - at)
        buffer = digest.buffer(piece)
        came = _fill(sources[number % len(sources)], memoryview(buffer)[:wanted])
        view = memoryview(buffer)[:came]
        while view:
            written = os.pwrite(file, view[:WRITE_BYTES], at)
            view, at = view[written:], at + written
        if came < wanted:
            return False
        digest.update(buffer, came)
        number += 1
    return True


def _fill(source: int, room: memoryview) -> int:
    came = 0
    while came < len(room) and (more := os.readv(source, [room[came:]])):
        came += more
    return came


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


if __name__ == "__main__":
    _verb, _folder, _sha256, _third, _fourth = sys.argv[1:]
    if _verb == "take":
        sys.exit(receive(_folder, _sha256, int(_third), int(_fourth)))
    sys.exit(join(_folder, _sha256, _third, int(_fourth)))
