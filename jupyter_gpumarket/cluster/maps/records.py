"""What is written down about a map, beside its request and its outcomes."""

from __future__ import annotations

from jupyter_gpumarket.api import MapState
from jupyter_gpumarket.models import Record


class MapRecord(Record, frozen=True, kw_only=True):
    """state.json. `round` counts how often the map was begun: each round has cell runs of its own.

    `seed` chooses the items that are verified; nodes never hear of it.
    """

    state: MapState
    seed: str
    created_ms: int
    began_ms: int
    ended_ms: int | None = None
    round: int = 1
    reason: str = ""
