"""The seam between the cluster process and the way to a node: links, set-up, probe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jupyter_gpumarket.api import Attach, SetupStep
from jupyter_gpumarket.cluster.records import Installed
from jupyter_gpumarket.wire.peer import Reader, Writer


class Link(Protocol):
    """One connection to one node."""

    @property
    def host_key(self) -> str | None:
        """The accepted host key, as an OpenSSH public key line, once connected."""

    @property
    def first_sight(self) -> bool:
        """Whether nobody had vouched for the host key before."""

    @property
    def connected(self) -> bool:
        """Whether it is up, as far as is known."""

    async def connect(self) -> None:
        """Connect.

        Raises:
            Unreachable, HostKeyChanged, NodeError: no connection.
        """

    async def open_stream(self, command: str) -> tuple[Reader, Writer]:
        """Run a command and speak to it through its standard input and output."""

    def abort(self) -> None:
        """Drop the connection at once, without waiting for the other side."""


class Reach(Protocol):
    """How nodes are reached, set up and probed."""

    def link(self, attach: Attach, host_key: str | None) -> Link:
        """A link, not connected yet."""

    async def prepare(self, link: Link, attach: Attach, on_step: Callable[[SetupStep], None]) -> Installed:
        """Set the node up, idempotently, and start the agent.

        Raises:
            NodeError: it cannot be done on this node.
        """

    async def probe(self, link: Link, installed: Installed, attach: Attach) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the node really is, and in which points it differs from the offer."""

    async def log(self, link: Link, installed: Installed) -> str:
        """The last lines of the agent's log."""
