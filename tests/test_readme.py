"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")


def names_of_tests(path: Path) -> set[str]:
    """The test functions of a file, read without importing it."""
    tree = ast.parse(path.read_text("utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds) and node.name.startswith("test_")}


def test_every_test_that_the_table_names_exists() -> None:
    """A renamed or removed test cannot leave its fault unheld unnoticed."""
    named = NAMED.findall((HERE / "README.md").read_text("utf-8"))
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not (HERE / file).exists() or name not in names_of_tests(HERE / file)
    ]

    assert missing == []


def test_every_row_of_the_table_has_a_test() -> None:
    """Each fault is held by at least one test; there are as many rows as kinds of faults we promise to meet."""
    rows = [line for line in (HERE / "README.md").read_text("utf-8").splitlines() if line.startswith("| ")][1:]

    assert len(rows) >= 24
    assert [row for row in rows if not NAMED.search(row)] == []
