"""Bulk data beside the numbered channel: bytes go by commands of the node's own, and the agent takes them over.

What has arrived stays on the node's disk, so that a cut link, a new agent or a new cluster process goes on where the
former one stopped. Nothing counts before its hash has been checked.
"""

from __future__ import annotations

import shlex

from jupyter_gpumarket.wire.messages import Message

# Smaller blobs and outputs go through the channel.
BULK_BYTES = 4 * 1024 * 1024
# Both ends cut a striped transfer into these pieces.
PIECE_BYTES = 256 * 1024
# Round trips from which on several channels pay: an SSH server has at most 2 MiB under way on one of them. Servers
# mostly allow ten channels on a connection.
_STRIPES = ((80.0, 6), (8.0, 4))


class TakeBlob(Message, frozen=True, kw_only=True, tag="take_blob"):
    """The blob's bytes lie whole in `<sha256>.in`: check them and keep them; answered by `BlobStored`.

    `is_checked`: the node has hashed them while they came, so that only the size is looked at.
    """

    sha256: str
    size: int
    is_checked: bool = False


def stripes_for(size: int, round_trip_ms: float | None) -> int:
    """On how many channels an input goes to a node."""
    if size < 4 * BULK_BYTES or round_trip_ms is None:
        return 1
    return next((stripes for least_ms, stripes in _STRIPES if round_trip_ms >= least_ms), 1)


def receive_command(python: str, folder: str, sha256: str, size: int, stripes: int = 1) -> str:
    """For the node's shell: says how many bytes of a blob are there and a token, takes the others, tells the hash."""
    return _receiver(python, folder, "take", sha256, str(size), str(stripes))


def join_command(python: str, folder: str, sha256: str, token: str, number: int) -> str:
    """For the node's shell: a further stripe of the transfer that said this token."""
    return _receiver(python, folder, "join", sha256, token, str(number))


def _receiver(python: str, folder: str, verb: str, *arguments: str) -> str:
    # Without `site`, of which it needs nothing, the interpreter starts twice as quickly.
    argv = [python, "-S", "-m", "jupyter_gpumarket.agent.receive", verb, folder, *arguments]
    return f"exec env {shlex.quote(f'PYTHONPATH={folder}/app.zip')} {shlex.join(argv)}"


def send_command(folder: str, run_id: str, name: str, offset: int) -> str:
    """For the node's shell: an output variable's bytes from an offset on."""
    path = shlex.quote(f"{folder}/runs/{run_id}/out-{name.encode().hex()}")
    return f"exec tail -c +{offset + 1} {path}"
