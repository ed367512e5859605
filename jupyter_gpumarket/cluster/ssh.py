"""The real way to nodes: SSH links, set-up and probe from `nodes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jupyter_gpumarket.api import Attach, SetupStep
from jupyter_gpumarket.cluster.reach import Link
from jupyter_gpumarket.cluster.records import Installed
from jupyter_gpumarket.errors import Unreachable


class SshReach:
    """Reaches nodes over SSH."""

    def link(self, attach: Attach, host_key: str | None) -> Link:
        """A link, not connected yet."""
        raise Unreachable(f"{attach.name} ({host_key}): links are not built in yet")

    async def prepare(self, link: Link, attach: Attach, on_step: Callable[[SetupStep], None]) -> Installed:
        """Set the node up."""
        raise NotImplementedError

    async def probe(self, link: Link, installed: Installed, attach: Attach) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Probe the node."""
        raise NotImplementedError

    async def log(self, link: Link, installed: Installed) -> str:
        """The last lines of the agent's log."""
        raise NotImplementedError
