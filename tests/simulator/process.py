"""The stand-ins as a process of their own, for tests whose other parts are processes too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from jupyter_gpumarket.config import private_folder, write_private
from tests.broker.running import until


class Stand:
    """One stand-in of the process: its URL and key, and the simulator's own paths."""

    def __init__(self, told: dict[str, str]) -> None:
        self.url, self.key = told["url"], told["key"]
        self._token = told["control_token"]

    def arm(self, fault: str, times: int | None = 1) -> None:
        self.control("POST", "faults", {"fault": fault, "times": times})

    def rentals(self) -> list[dict[str, Any]]:
        """What is really rented."""
        return list(self.control("GET", "rentals"))

    def control(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"}
        reply = httpx.request(method, f"{self.url}/_simulator/{path}", json=body, headers=headers, trust_env=False)
        reply.raise_for_status()
        return reply.json()


@contextmanager
def simulator(
    folder: Path, pool_url: str, pool_token: str, *names: str, figures: bool = False
) -> Iterator[dict[str, Stand]]:
    """Stand-ins on this pool, until the block ends."""
    where = private_folder(folder / "simulator")
    write_private(where / "pool.key", pool_token.encode())
    argv = [sys.executable, "-m", "jupyter_gpumarket.simulator", "--folder", str(where), "--pool", pool_url]
    argv += ["--pool-key-file", str(where / "pool.key"), "--marketplaces", ",".join(names), "--boot-s", "0.2"]
    argv += ["--until-stdin-ends", *(["--figures"] if figures else [])]
    with (folder / "simulator.log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        file = where / "simulator.json"
        until("the stand-ins are up", file.exists)
        yield {name: Stand(told) for name, told in json.loads(file.read_text("utf-8")).items()}
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
