"""A small real pool for tests: a registry and hosts on loopback, and settings that point at it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from jupyter_gpumarket.config import Folders, private_folder, write_private
from tests.broker.running import folders_in, until

PRICE = "3.60"  # a tenth of a cent a second: every millisecond is seen in the bill


@contextmanager
def pool(
    root: Path, hosts: Sequence[str] = ("north",), settings: str = "", host_options: Sequence[str] = ()
) -> Iterator[tuple[Folders, Any]]:
    """Folders whose broker has this pool, and the pool's registry file. All its processes end with it."""
    folders = folders_in(root)
    registry = private_folder(root / "registry")
    with ExitStack() as stack:
        stack.enter_context(_process(root / "registry.log", "registry", "--folder", registry, "--heartbeat", "0.5"))
        path = registry / "registry.json"
        facts = json.loads(until("the registry is up", lambda: path.exists() and path.read_text("utf-8")))
        join = root / "join.token"
        write_private(join, facts["join_token"].encode())
        for name in hosts:
            folder = private_folder(root / name)
            options = [
                "--registry",
                facts["url"],
                "--token-file",
                join,
                "--folder",
                folder,
                "--name",
                name,
                *host_options,
            ]
            stack.enter_context(_process(root / f"{name}.log", "host", *options, "--price", PRICE))
        write_private(folders.settings_file, f'{settings}\n[marketplaces.pool]\nurl = "{facts["url"]}"\n'.encode())
        write_private(folders.configuration / "pool.key", facts["user_token"].encode())
        yield folders, facts


@contextmanager
def _process(log: Path, *arguments: object) -> Iterator[None]:
    argv = [sys.executable, "-m", "jupyter_gpumarket.pool", *(str(argument) for argument in arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
