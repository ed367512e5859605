"""House rules that a machine can hold: sizes, imports, names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jupyter_gpumarket"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70


def functions(source: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(source: Path) -> None:
    """No file over 500 lines, no function over 70."""
    too_long = [f"{name}: {length} lines" for name, length in functions(source) if length > MAX_FUNCTION_LINES]

    assert len(source.read_text("utf-8").splitlines()) <= MAX_FILE_LINES
    assert too_long == []


def test_every_module_says_what_it_is_for() -> None:
    """Each module starts with a docstring."""
    silent = [str(s.relative_to(PACKAGE)) for s in SOURCES if not ast.get_docstring(ast.parse(s.read_text("utf-8")))]

    assert silent == []


def test_there_is_no_drawer() -> None:
    """No utils, helpers, common or misc: names say what is inside."""
    drawers = [s for s in SOURCES if s.stem in {"utils", "util", "helpers", "common", "misc"}]

    assert drawers == []


def test_imports_go_down_only() -> None:
    """The import-linter contracts in pyproject.toml hold."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


# Third parties that only some parts may know (design: who imports what).
OWNERS = {
    "asyncssh": {"nodes", "pool"},
    "sqlalchemy": {"journal"},
    "alembic": {"journal"},
    "polars": {"offers", "ledger", "notebook", "cli"},
    "distributed": {"agent", "notebook"},
    "pickle": {"agent"},
}


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_libraries_stay_with_their_owners(library: str) -> None:
    """Only the owning parts import a library, so that the others stay small and safe."""
    strangers = {
        str(source.relative_to(PACKAGE))
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        for name in imported(node)
        if name.split(".")[0] == library and part(source) not in OWNERS[library]
    }

    assert strangers == set()


def part(source: Path) -> str:
    return source.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    return []


def test_no_float_comes_near_money() -> None:
    """Nothing named like money is annotated as a float."""
    guilty = [
        f"{source.relative_to(PACKAGE)}:{node.lineno} {node.target.id}"
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and "nusd" in node.target.id
        and "float" in ast.unparse(node.annotation)
    ]

    assert guilty == []


DOORS = {"notebook", "server", "cli", "demo", "client"}
PROCESSES = {"broker", "cluster", "agent"}


def test_doors_start_the_processes_and_do_not_import_them() -> None:
    """No door imports the broker's, the cluster's or the agent's code."""
    guilty = {
        f"{source.relative_to(PACKAGE)} imports {name}"
        for source in SOURCES
        if part(source) in DOORS
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        for name in imported(node)
        if name.startswith("jupyter_gpumarket.") and name.split(".")[1] in PROCESSES
    }

    assert guilty == set()


NODE_SIDE = {"wire", "codecs", "agent", "errors", "clock", "money", "models"}


def test_the_agent_needs_only_what_a_node_has() -> None:
    """The agent imports the wire, the codecs and the ground: a node install is small."""
    guilty = {
        f"{source.relative_to(PACKAGE)} imports {name}"
        for source in SOURCES
        if part(source) in {"agent", "wire", "codecs"}
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        for name in imported(node)
        if name.startswith("jupyter_gpumarket.") and name.split(".")[1] not in NODE_SIDE
    }

    assert guilty == set()
