"""The lease's folder on the node: names and private, atomic files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jupyter_gpumarket.errors import BadRequest

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
SHA256 = re.compile(r"[0-9a-f]{64}")


class NodeFolder:
    """Paths below the lease's folder. Everything in it is private to the user who runs the agent."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.settings = self.root / "agent.json"
        self.socket = self.root / "agent.sock"
        self.pid = self.root / "agent.pid"
        self.heartbeat = self.root / "heartbeat"
        self.busy = self.root / "busy"
        self.watchdog = self.root / "watchdog.json"
        self.runs = self.root / "runs"
        self.blobs = self.root / "blobs"
        self.kernels = self.root / "kernels"
        self.dask = self.root / "dask"
        self.work = self.root / "work"

    def make(self) -> None:
        """Create what is missing."""
        for folder in (self.root, self.runs, self.blobs, self.kernels, self.dask, self.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def why_stopped(self) -> str:
        """What the watchdog wrote down when it began to stop the node; empty while it has not."""
        try:
            return (self.root / "stopped").read_text("utf-8", "replace").strip()[:500]
        except OSError:
            return ""

    def blob(self, sha256: str) -> Path:
        """Where an input lies.

        Raises:
            BadRequest: not a hash.
        """
        if not SHA256.fullmatch(sha256):
            raise BadRequest("sha256 must be 64 hexadecimal digits")
        return self.blobs / sha256

    def run(self, run_id: str) -> Path:
        """A run's own folder.

        Raises:
            BadRequest: not a name for a file.
        """
        return self.runs / safe_name(run_id, "run_id")


def safe_name(name: str, field: str) -> str:
    """The name itself, when it can be part of a path.

    Raises:
        BadRequest: it cannot.
    """
    if not SAFE_NAME.fullmatch(name):
        raise BadRequest(f"{field} must be made of letters, digits, '_', '-' and '.', at most 128 of them")
    return name


def write_atomically(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file, so that a reader sees the old or the new content and nothing between."""
    draft = path.with_name(path.name + ".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.replace(path)
