"""The job that a Nosana host runs for us: an SSH server, and before it a bridge from the job's WebSocket ingress.

Job definitions are public (they are kept on IPFS): nothing in one may be a secret. The lease's public key is none.
"""

from __future__ import annotations

import shlex
from typing import Any

OP_ID = "node"
BRIDGE_PORT = 8022
SSH_PORT = 2222
PID_FILE = "/tmp/gpumarket-bridge.pid"  # noqa: S108 - in the container, of which it is the first process

# Runs in the container, on the Python and the `websockets` (9 or newer) of its distribution. Nobody is checked here:
# the SSH server behind it lets in the lease's key alone.
BRIDGE = """
import asyncio, os, signal, sys
import websockets

LISTEN, TARGET, PID_FILE = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

async def serve(websocket, *path):
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", TARGET)
    except OSError:
        return

    async def to_ssh():
        async for part in websocket:
            writer.write(part if isinstance(part, bytes) else part.encode())
            await writer.drain()

    async def from_ssh():
        while True:
            part = await reader.read(65536)
            if not part:
                return
            await websocket.send(part)

    ways = [asyncio.ensure_future(to_ssh()), asyncio.ensure_future(from_ssh())]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    await asyncio.gather(*ways, return_exceptions=True)
    writer.close()
    await websocket.close()

async def main():
    end = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end.set)
    options = {"ping_interval": 20, "ping_timeout": 20, "max_size": 1 << 20, "max_queue": 4, "compression": None}
    async with websockets.serve(serve, os.environ.get("GPUMARKET_LISTEN", "0.0.0.0"), LISTEN, **options):
        with open(PID_FILE, "w") as file:
            file.write(str(os.getpid()))
        await end.wait()

asyncio.run(main())
"""

# Debian and Ubuntu images, as root: what every image of NVIDIA, PyTorch and so on is.
START = f"""
set -e
export DEBIAN_FRONTEND=noninteractive
apt-get update -q
apt-get install -q -y --no-install-recommends openssh-server python3 python3-websockets curl ca-certificates
mkdir -p -m 700 ~/.ssh
mkdir -p /run/sshd
printf '%s\\n' "$GPUMARKET_SSH_KEY" >> ~/.ssh/authorized_keys
chmod 600 ~/.ssh/authorized_keys
ssh-keygen -A
/usr/sbin/sshd -p {SSH_PORT} -o ListenAddress=127.0.0.1 -o PermitRootLogin=prohibit-password \\
    -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o MaxSessions=100
exec /usr/bin/python3 -c "$GPUMARKET_BRIDGE" {BRIDGE_PORT} {SSH_PORT} {PID_FILE}
"""
# The container ends with its first process, the job with the container, and the bill with the job.
STOP = ("sh", "-c", f'kill -TERM "$(cat {shlex.quote(PID_FILE)})"')


def job_definition(image: str, ssh_public_key: str, vram_gib: float) -> dict[str, Any]:
    """What a host is to run."""
    meta: dict[str, Any] = {"trigger": "api"}
    if vram_gib:
        meta["system_resources"] = {"required_vram": int(vram_gib)}
    container = {
        "image": image,
        "gpu": True,
        "entrypoint": ["sh", "-c"],
        "cmd": [START],
        "env": {"GPUMARKET_SSH_KEY": ssh_public_key.strip(), "GPUMARKET_BRIDGE": BRIDGE},
        "expose": [{"port": BRIDGE_PORT, "type": "websocket"}],
    }
    return {
        "version": "0.1",
        "type": "container",
        "meta": meta,
        "ops": [{"type": "container/run", "id": OP_ID, "args": container}],
    }
