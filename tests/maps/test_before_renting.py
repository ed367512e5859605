"""What can be wrong with a map is told before a node is rented."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.errors import BadRequest
from tests.notebook.conftest import Room, room

__all__ = ["room"]


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("%%gpu --map x\nx", "write item=items"),
        ("%%gpu --map 1x=items\n1", "write item=items"),
        ("%%gpu --map x=itms\nx", "did you mean items?"),
        ("%%gpu --map x=1/0\nx", "ZeroDivisionError"),
        ("%%gpu --map x=text\nx", "a text is one thing"),
        ("%%gpu --map x=number\nx", "cannot be gone through"),
        ("%%gpu --map x=items -o r\ny = x", "end the cell with an expression"),
        ("%%gpu --map x=items -o r\nx +", "not plain Python in line 1"),
        ("%%gpu --map x=items -o r\n!ls", "not plain Python"),
        ("%%gpu --map x=items -o r,s\nx", "one result"),
        ("%%gpu --map x=items --on all\nx", "not with --on"),
        ("%%gpu --map x=items --slots 0\nx", "--slots takes"),
        ("%%gpu --map x=items --verify 2\nx", "from 0 to 1"),
        ("%%gpu --map x=items --verify lots\nx", "from 0 to 1"),
        ("%%gpu --retries 2\n1", "add --map"),
        ("%%gpu --map x=things\nx", "item 1"),
        ("%gpu cluster 0 --budget 1", "it begins with 1 to 1000"),
    ],
)
def test_a_map_that_cannot_be_is_refused_with_its_reason(room: Room, cell: str, told: str) -> None:
    """Each mistake is named with what to write instead, and nothing is rented."""
    room.must_run("items = [1, 2]; text = 'abc'; number = 7; things = [1, (n for n in items)]")
    error = room.run(cell)

    assert told in str(error)
    assert isinstance(error, BadRequest) or "sent to the node" in str(error)
    assert room.client.wishes == []


def test_no_items_is_an_empty_list_and_no_node(room: Room) -> None:
    """Nothing to do costs nothing."""
    room.must_run("%%gpu --map x=[] -o results\nx")

    assert room.shell.user_ns["results"] == []
    assert room.client.wishes == []
