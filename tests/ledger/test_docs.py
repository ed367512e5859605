"""The worked example in the manual."""

from __future__ import annotations

import doctest
from pathlib import Path


def test_the_manual_s_example_is_true() -> None:
    """Every line of `docs/ledger.md` that shows a result has just given it."""
    manual = Path(__file__).parents[2] / "docs" / "ledger.md"

    done = doctest.testfile(str(manual), module_relative=False)

    assert done.attempted > 10
    assert done.failed == 0
