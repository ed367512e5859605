"""For nodes that the user trusts: loopback ports of this machine that lead to ports on nodes.

Opened only when a door asks for it. Without such an order no socket of the user's machine listens for a node.
"""

from __future__ import annotations

from typing import Any

from jupyter_gpumarket.cluster.relay import STREAM_MESSAGES, Relay, Target
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.wire.streams import Streams, free_port

# No lease has this id.
HERE = "(this machine)"
TRIES = 5


class LocalDoor:
    """This machine's end of the relay."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._ports: dict[Target, int] = {}
        self._streams = Streams(self._to_relay)
        relay.join(HERE, self._from_relay)

    async def port_to(self, target: Target) -> int:
        """A port here that leads there; the same one each time.

        Raises:
            BadRequest: no port can be had.
        """
        if target in self._ports:
            return self._ports[target]
        reason = ""
        for _ in range(TRIES):
            port = free_port()
            reason = await self._relay.listen(HERE, port, target)
            if not reason:
                self._ports[target] = port
                return port
        raise BadRequest(f"no port on this machine can be opened: {reason}")

    def close(self) -> None:
        """Close all of them."""
        self._streams.close()

    async def _to_relay(self, message: Any) -> None:
        if isinstance(message, STREAM_MESSAGES):
            self._relay.take(HERE, message)

    async def _from_relay(self, message: Any) -> None:
        self._streams.take(message)
