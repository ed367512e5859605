"""What the kernel tells a front end about a cell's run."""

from __future__ import annotations

from jupyter_gpumarket.notebook.costline import METADATA_KEY
from tests.notebook.conftest import Room, room

__all__ = ["room"]


def test_the_cost_line_names_its_run_and_its_cost(room: Room) -> None:
    """While it runs, the line's metadata has run and node; at its end the exact cost, which a badge keeps."""
    room.must_run("%%gpu\nprint(1)")

    told = [one["metadata"][METADATA_KEY] for one in room.published if METADATA_KEY in (one.get("metadata") or {})]
    assert told[0]["run_id"]
    assert told[0]["amount_nusd"] is None
    assert {one["run_id"] for one in told} == {told[0]["run_id"]}
    assert told[-1]["final"]
    assert told[-1]["amount_nusd"] == room.client.run_cost(told[0]["run_id"]).amount_nusd
