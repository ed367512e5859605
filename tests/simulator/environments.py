"""Throw-away environments for the marketplaces' own clients. In CI they must be there; else they may be absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def environment(folder: Path, *packages: str) -> Path:
    """A new virtual environment's `bin` with these pinned packages."""
    uv = shutil.which("uv")
    if uv is None:
        absent("uv is not on the PATH")
        raise AssertionError
    where = folder / "venv"
    ours = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    for argv in (
        [uv, "venv", "-q", "--python", sys.executable, str(where)],
        [uv, "pip", "install", "-q", "--python", str(where / "bin" / "python"), *packages],
    ):
        done = subprocess.run(argv, env=ours, capture_output=True, text=True, timeout=100, check=False)
        if done.returncode:
            absent(f"{' '.join(packages)} cannot be installed: {done.stderr[-500:]}")
    return where / "bin"


def absent(why: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)
