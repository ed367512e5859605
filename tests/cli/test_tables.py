"""Terminal tables are aligned and harmless."""

from __future__ import annotations

from jupyter_gpumarket.cli.tables import safe, text_table


def test_figures_stand_to_the_right() -> None:
    """Columns of figures align at their last digit."""
    assert text_table(["node", "$"], [["a", "1.00"], ["bb", "10.00"]]) == "node      $\na      1.00\nbb    10.00"


def test_control_characters_are_shown_not_obeyed() -> None:
    """A marketplace's text cannot move the cursor or set the clipboard."""
    assert safe("a\x1b]52;c;x\x07b\u202ec") == "a�]52;c;x�b�c"
