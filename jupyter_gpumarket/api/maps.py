"""What doors say to a cluster process about maps: `%%gpu --map item=items`."""

from __future__ import annotations

from enum import StrEnum

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.api.clusters import InputRef
from jupyter_gpumarket.models import Owner, Record

MAP_SESSION = "map"


def map_run_id(map_id: str, round_: int, lease_id: str) -> str:
    """The cell run on which a node's part in a map is booked, in one of the map's rounds."""
    return f"{map_id}-{round_}-{lease_id}"


def map_of_run(run_id: str) -> str:
    """The map of such a cell run; a map's own id has no '-' in it."""
    return run_id.partition("-")[0]


class ItemState(StrEnum):
    """How an item ended: OK; ERROR after all its tries; POISONED when it killed its worker each time."""

    OK = "ok"
    ERROR = "error"
    POISONED = "poisoned"


class MapState(StrEnum):
    """A map is RUNNING, DONE (each item has ended), or STOPPED (by the user; it can be resumed)."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"


class MapRequest(Request, frozen=True, kw_only=True):
    """POST /v1/maps: run a body once for each item, on all nodes of the cluster. The same `map_id` twice is one map.

    `items_sha256` is a blob made by `packing.pack`; `blobs` are those of large items, put before. `retries` counts
    tries after an error, `deaths` how many workers (or nodes) an item may take with it. `slots` is per node; None:
    one for each GPU, or one. `verify_ppm`: so many millionths of the items run again on another machine.
    """

    map_id: str
    code: str
    item_name: str
    items_sha256: str
    count: int
    gives_result: bool = True
    inputs: tuple[InputRef, ...] = ()
    blobs: tuple[str, ...] = ()
    slots: int | None = None
    retries: int = 0
    deaths: int = 3
    timeout_s: float | None = None
    verify_ppm: int = 0
    owner: Owner = Owner()
    cell_id: str = ""
    label: str = ""


class SeatView(Record, frozen=True, kw_only=True):
    """A node's part in a map: the cell run that its time is booked on, and how much of the map it did."""

    lease_id: str
    run_id: str
    slots: int
    state: str
    ended: int
    running: int
    busy_ms: int


class MapView(Record, frozen=True, kw_only=True):
    """A map as it is now. `n` is the number of its last news: outcomes count from 1, see `ItemView.n`.

    `checks` and `checked` are the items to be run a second time, and those that have been.
    """

    map_id: str
    state: MapState
    count: int
    n: int
    ok: int
    failed: int
    poisoned: int
    running: int
    waiting: int
    retried: int
    checks: int
    checked: int
    created_ms: int
    began_ms: int
    ended_ms: int | None = None
    reason: str = ""
    seats: tuple[SeatView, ...] = ()
    label: str = ""
    code_sha256: str = ""
    item_name: str = ""
    owner: Owner = Owner()
    cell_id: str = ""
    round: int = 1

    @property
    def ended(self) -> int:
        """How many items have ended, in whatever way."""
        return self.ok + self.failed + self.poisoned


class ItemView(Record, frozen=True, kw_only=True):
    """How an item ended, in the order of the ends. The node's words: clean before display.

    `check`: this is the second run of a verified item. `data` is the result's bytes where they are few; others:
    GET /v1/maps/{map}/results/{n}. `tries` counts runs that came to an end.
    """

    n: int
    index: int
    state: ItemState
    lease_id: str
    run_id: str
    tries: int
    took_ms: int
    ended_ms: int
    check: bool = False
    codec: str = ""
    size: int = 0
    sha256: str = ""
    data: bytes = b""
    stdout: str = ""
    stderr: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()


class MapNews(Record, frozen=True, kw_only=True):
    """GET /v1/maps/{map}/items?after=N&wait_s=S: outcomes after number N; waits when there is nothing yet."""

    items: list[ItemView]
    map: MapView
