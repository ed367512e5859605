"""What is told before something large moves."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.api import DaskView, DaskWayView
from jupyter_gpumarket.notebook.values import crossing_words


@pytest.mark.parametrize(
    ("ways", "words"),
    [
        ((), "to each of 3 nodes from here"),
        (("b a", "c a"), "once from here, and from node to node to 2 of 3"),
        (("b a",), "2 times from here, and from node to node to 1 of 3"),
        (("a b", "a c"), "to each of 3 nodes from here"),  # the first one has nobody to get it from
    ],
)
def test_how_often_the_users_line_is_crossed_is_told(ways: tuple[str, ...], words: str) -> None:
    """Once where the others reach a node that has it before them, else once more for each that does not."""
    pairs = [way.split() for way in ways]
    view = DaskView(
        state="off", ways=tuple(DaskWayView(from_lease=one, to_lease=other, is_direct=True) for one, other in pairs)
    )

    assert words in crossing_words(view, ["a", "b", "c"])
