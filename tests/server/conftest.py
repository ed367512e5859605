"""One Jupyter server for all tests that can share it: starting one takes seconds."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.config import folders
from tests.broker.running import end_processes
from tests.server.running import Server, server_in


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server without any marketplace, and whatever broker it starts."""
    folder = Path(tempfile.mkdtemp(prefix="gs", dir="/tmp"))
    home = folder / "home"
    try:
        with server_in(folder / "server", home) as running:
            # What was there before anybody asked anything of ours.
            (running.root / "home-at-start.json").write_text(json.dumps(home.exists()))
            yield running
    finally:
        end_processes(folders({"JUPYTER_GPUMARKET_HOME": str(home)}))
        shutil.rmtree(folder, ignore_errors=True)
