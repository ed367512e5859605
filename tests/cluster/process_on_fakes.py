"""The cluster process with nodes that are played by the test: the address's host is the path of a Unix socket.

python -m tests.cluster.process_on_fakes --folder FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_gpumarket.api import Attach, SetupStep
from jupyter_gpumarket.cluster.environment import replace_unless_scrubbed
from jupyter_gpumarket.cluster.serve import serve
from jupyter_gpumarket.errors import CommandFailed, HostKeyChanged, Unreachable
from jupyter_gpumarket.nodes import Installed

SEEN: list[str] = []


def watch_unpickling(event: str, arguments: tuple[Any, ...]) -> None:
    """An unpickling anywhere in this process ends it in a way that a test sees."""
    if event == "pickle.find_class":
        SEEN.append(str(arguments))
        Path(sys.argv[2], "unpickled").write_text(str(arguments))


class FakeLink:
    """Files beside the socket say how the node answers: `.key` is its host key, `.prepare` and `.probe` its faults."""

    def __init__(self, attach: Attach, host_key: str | None) -> None:
        self.path = Path(attach.address.host)
        self.host_key = host_key
        self.first_sight = False
        self.connected = False

    async def connect(self) -> None:
        if not self.path.exists():
            raise Unreachable("the node does not answer")
        key_file = self.path.with_suffix(".key")
        presented = key_file.read_text() if key_file.exists() else "ssh-ed25519 AAAA"
        if self.host_key is None:
            self.host_key, self.first_sight = presented, True
        if presented != self.host_key:
            raise HostKeyChanged("the node answers with another host key")
        self.connected = True

    async def open_stream(self, command: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if command != "attach":
            raise CommandFailed("this node has no shell", exit_code=127)
        try:
            return await asyncio.open_unix_connection(str(self.path))
        except OSError:
            raise Unreachable("the node does not answer") from None

    def abort(self) -> None:
        self.connected = False

    async def prepare(self, attach: Attach, on_step: Callable[[SetupStep], None]) -> Installed:
        on_step(SetupStep(name="python", state="done", took_ms=3))
        fault = self.path.with_suffix(".prepare")
        if fault.exists():
            raise CommandFailed(fault.read_text(), exit_code=1)
        return Installed(
            python="/usr/bin/python3",
            python_version="3.11.9",
            folder=str(self.path.parent),
            versions={},
            steps_ms={"python": 3},
            attach_command="attach",
        )

    async def probe(self, installed: Installed, attach: Attach) -> tuple[dict[str, Any], tuple[str, ...]]:
        return {"gpus": []}, ()

    async def log(self, installed: Installed) -> str:
        return "the agent's log"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    folder = parser.parse_args().folder
    replace_unless_scrubbed("tests.cluster.process_on_fakes", ["--folder", str(folder)])
    sys.addaudithook(watch_unpickling)
    logging.basicConfig(level=logging.INFO)
    asyncio.run(serve(folder, FakeLink))


if __name__ == "__main__":
    main()
