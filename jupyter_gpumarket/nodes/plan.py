"""What set-up is asked for, and what it hands back."""

from __future__ import annotations

import re
from typing import Any

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.models import Record, SelfStop
from jupyter_gpumarket.nodes.address import shown
from jupyter_gpumarket.nodes.versions import Versions

_LEASE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\Z")
_NODE_PATH = re.compile(r"/[A-Za-z0-9_.+@%=:,/ -]{0,1000}\Z")


class SetupPlan(Record, frozen=True, kw_only=True):
    """What a node has to become. `wanted` of None: what this process itself has."""

    lease_id: str
    deadline_ms: int
    grace_s: int
    self_stop: SelfStop | None = None
    wanted: Versions | None = None

    def __post_init__(self) -> None:
        if not _LEASE_ID.match(self.lease_id):
            raise NodeError(f"{shown(self.lease_id)!r} cannot name a folder on the node")

    def watchdog_settings(self) -> dict[str, Any]:
        """What the watchdog reads."""
        stop = self.self_stop
        return {
            "deadline_ms": self.deadline_ms,
            "grace_s": self.grace_s,
            "self_stop": {"argv": list(stop.argv), "env": stop.env} if stop else None,
        }

    def agent_settings(self, python: str) -> dict[str, Any]:
        """What the agent reads."""
        return {"lease_id": self.lease_id, **self.watchdog_settings(), "python": python}


class Installed(Record, frozen=True, kw_only=True):
    """A node that is ready for work. `attach_command` opens the conversation with the agent on a stream.

    `python` is the interpreter's path there, `python_version` what it is; `steps_ms` how long each step took.
    """

    python: str
    python_version: str
    folder: str
    versions: dict[str, str]
    steps_ms: dict[str, int]
    attach_command: str


def node_path(text: str) -> str:
    """A path that the node told, if it looks like an absolute path.

    Raises:
        NodeError: it does not; such a node is not worked with.
    """
    if not _NODE_PATH.match(text):
        raise NodeError(f"the node tells a path that is none: {shown(text)!r}")
    return text
