"""The archive that a node gets: what is in it, that it runs, and that its hash means something."""

from __future__ import annotations

import ast
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jupyter_gpumarket.nodes.bundle import bundle, node_program
from jupyter_gpumarket.nodes.packages import closure

# What the standard library had in 3.8 and later versions took away or added is told by running, where one is here.
ONNODE = ("nodes/onnode/steps.py", "nodes/onnode/probe.py", "agent/watchdog.py")


def names() -> set[str]:
    return set(zipfile.ZipFile(io.BytesIO(bundle().content)).namelist())


def test_the_same_sources_give_the_same_bytes() -> None:
    """The archive does not depend on when or how often it is made."""
    first = bundle()
    bundle.cache_clear()

    assert bundle().content == first.content


def test_it_holds_the_node_side_and_nothing_else() -> None:
    """Agent, wire, codecs and the ground are in it; doors, broker, marketplaces and their dependencies are not."""
    top = {name.split("/")[1].removesuffix(".py") for name in names()}

    assert top == {"__init__", "agent", "wire", "codecs", "errors", "clock", "money", "models"}


def test_the_agent_runs_from_it(tmp_path: Path) -> None:
    """`check` works from the archive alone, without the package being installed."""
    (tmp_path / "app.zip").write_bytes(bundle().content)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket.agent", "check"],
        env={"PYTHONPATH": str(tmp_path / "app.zip")},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        timeout=60,
    )

    assert json.loads(done.stdout)["python"].startswith("3.")


@pytest.mark.parametrize("program", ONNODE)
def test_programs_for_nodes_need_only_an_old_python(program: str) -> None:
    """They parse as Python 3.8 and import the standard library alone."""
    tree = ast.parse(node_program(program), feature_version=(3, 8))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert modules <= sys.stdlib_module_names


def test_what_a_package_needs_comes_with_it() -> None:
    """Packages that are pushed bring what they need, and not what only their extras need."""
    found = {d.metadata["Name"].casefold().replace("_", "-") for d in closure(["distributed"])}

    assert {"distributed", "dask", "cloudpickle", "msgpack", "tornado", "toolz"} <= found
    assert "pytest" not in found
