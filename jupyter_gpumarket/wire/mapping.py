"""What the cluster process and an agent say about maps: a cell's body, run once for each of many items.

The table of items is on the user's side. A node holds a share of them, gives back what it has not begun when asked,
and keeps each outcome until the user's side has it on its disk.
"""

from __future__ import annotations

import msgspec

from jupyter_gpumarket.wire.messages import Input, Message

# Results up to this size come inside of the outcome; larger ones as chunks before it.
MAX_INLINE_BYTES = 256 * 1024
MAX_ITEM_TEXT = 64 * 1024
MAX_GIVEN_BYTES = 2 * 1024 * 1024


class Item(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item to run: its value as bytes, or as a blob that was put before. `attempt` counts from 1."""

    index: int
    attempt: int
    codec: str
    data: bytes = b""
    sha256: str = ""


class Held(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """An item that a node has: waiting, begun, or with an outcome that was not saved yet."""

    index: int
    attempt: int
    begun: bool = False


# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class StartMap(Message, frozen=True, kw_only=True, tag="map_start"):
    """Have workers ready for this map; answered by `MapReady` each time, also when they are there already.

    `slots` of None: one for each GPU, or one. `gives_result`: the body's last expression is its result.
    """

    map_id: str
    code: str
    item_name: str
    gives_result: bool
    inputs: tuple[Input, ...] = ()
    slots: int | None = None
    timeout_s: float | None = None


class GiveItems(Message, frozen=True, kw_only=True, tag="map_give"):
    """Run these. An item with the same attempt runs once however often it is given."""

    map_id: str
    items: tuple[Item, ...]


class TakeBack(Message, frozen=True, kw_only=True, tag="map_take"):
    """Give back up to `count` items that have not begun, the last ones first; answered by `GivenBack`."""

    map_id: str
    count: int


class OutcomesSaved(Message, frozen=True, kw_only=True, tag="map_saved"):
    """These (index, attempt) are on the user's disk: the node may forget them."""

    map_id: str
    outcomes: tuple[tuple[int, int], ...]


class EndMap(Message, frozen=True, kw_only=True, tag="map_end"):
    """End the workers, whatever they do, and forget the map."""

    map_id: str


MapOrder = StartMap | GiveItems | TakeBack | OutcomesSaved | EndMap


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class MapReady(Message, frozen=True, kw_only=True, tag="map_ready"):
    """The answer to `StartMap`: how many items run side by side, and all that the node has of this map.

    `error`: this node cannot run it.
    """

    map_id: str
    slots: int = 0
    held: tuple[Held, ...] = ()
    error: str = ""


class ItemBegun(Message, frozen=True, kw_only=True, tag="map_begun"):
    """A worker has begun these (index, attempt)."""

    map_id: str
    items: tuple[tuple[int, int], ...]


class GivenBack(Message, frozen=True, kw_only=True, tag="map_back"):
    """The node will not run these (index, attempt)."""

    map_id: str
    items: tuple[tuple[int, int], ...]


class ResultChunk(Message, frozen=True, kw_only=True, tag="map_chunk"):
    """A piece of a large result; its outcome follows after the last one. At offset 0 it begins anew."""

    map_id: str
    index: int
    attempt: int
    offset: int
    data: bytes


class ItemOutcome(Message, frozen=True, kw_only=True, tag="map_outcome"):
    """How an item ended: ok, error, timed_out, or died (its worker process did). Kept until it is saved."""

    map_id: str
    index: int
    attempt: int
    status: str
    took_ms: int
    codec: str = ""
    size: int = 0
    sha256: str = ""
    data: bytes = b""
    stdout: str = ""
    stderr: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()


MapReport = MapReady | ItemBegun | GivenBack | ResultChunk | ItemOutcome
