"""Bulk data beside the numbered channel: bytes go by a command of the node's own, and the agent takes them over.

What has arrived stays on the node's disk, so that a cut link, a new agent or a new cluster process goes on where the
former one stopped. Nothing counts before its hash has been checked.
"""

from __future__ import annotations

import shlex

from jupyter_gpumarket.wire.messages import Message

# Smaller blobs and outputs go through the channel.
BULK_BYTES = 4 * 1024 * 1024


class TakeBlob(Message, frozen=True, kw_only=True, tag="take_blob"):
    """The blob's bytes lie whole in `<sha256>.in`: check them and keep them; answered by `BlobStored`.

    `is_checked`: the node's shell has hashed them while they came, so that only the size is looked at.
    """

    sha256: str
    size: int
    is_checked: bool = False


def receive_command(folder: str, sha256: str, size: int) -> str:
    """For the node's shell: says how many bytes of a blob are there, takes the others, and says that it has them.

    Where all come in one go and the node has the program for it, they are hashed on their way, and the hash is said.
    """
    part = shlex.quote(f"{folder}/blobs/{sha256}.in")
    return (
        f"umask 077; touch {part}; have=$(wc -c <{part}); echo $have; "
        f"if [ $have -eq 0 ] && command -v sha256sum >/dev/null; then "
        f"sum=$(head -c {size} | tee {part} | sha256sum); echo ${{sum%% *}}; else "
        f"[ $have -ge {size} ] || head -c $(({size} - have)) >>{part}; echo done; fi"
    )


def send_command(folder: str, run_id: str, name: str, offset: int) -> str:
    """For the node's shell: an output variable's bytes from an offset on."""
    path = shlex.quote(f"{folder}/runs/{run_id}/out-{name.encode().hex()}")
    return f"exec tail -c +{offset + 1} {path}"
