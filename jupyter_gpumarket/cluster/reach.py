"""The seam between the cluster process and the way to a node: one connection, set-up and probe over it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from jupyter_gpumarket.api import Attach, NodeSystem, PackagePin, PackageThere, SetupStep
from jupyter_gpumarket.nodes import Installed
from jupyter_gpumarket.wire.peer import Reader, Writer


class Link(Protocol):
    """One connection to one node. Every call raises `Unreachable` when it is lost."""

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

    async def prepare(self, attach: Attach, on_step: Callable[[SetupStep], None]) -> Installed:
        """Set the node up, idempotently, and start the agent.

        Raises:
            NodeError: it cannot be done on this node.
        """

    async def probe(self, installed: Installed, attach: Attach) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the node really is, and in which points it differs from the offer.

        Raises:
            NodeError: it cannot be found out.
        """

    async def packages(
        self, attach: Attach, installed: Installed, pins: tuple[PackagePin, ...]
    ) -> tuple[tuple[PackageThere, ...], NodeSystem]:
        """What the node has of these packages.

        Raises:
            NodeError: it cannot be found out.
        """

    async def bring_packages(
        self, attach: Attach, installed: Installed, pins: tuple[PackagePin, ...], where: tuple[str, ...]
    ) -> None:
        """Install those that the node lacks, all or none.

        Raises:
            NodeError: names package, node and reason.
        """

    async def open_stream(self, command: str) -> tuple[Reader, Writer]:
        """Run a command and speak to it through its standard input and output."""

    async def log(self, installed: Installed) -> str:
        """The last lines of the agent's log."""

    def abort(self) -> None:
        """Drop the connection at once, without waiting for the other side."""


# A link to the node of this order, not connected yet; the text is the host key to insist on, or None.
Reach = Callable[[Attach, str | None], Link]
