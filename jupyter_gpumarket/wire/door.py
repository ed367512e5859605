"""Direct ways between nodes: what the cluster process and agents say about doors, and what a guest says at one.

A door is a TCP port of an agent where members of the same cluster are let in, by mutual TLS with the cluster's own
authority, to exactly what the cluster process has allowed there: ports of Dask workers, and inputs by content.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TypeVar

import msgspec

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.messages import Message

MAX_ADDRESSES = 8
MAX_FRAME_BYTES = 1024

# ── orders ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class OpenDoor(Message, frozen=True, kw_only=True, tag="door_open"):
    """Open a door, or renew what an open one proves itself with (PEM). Answered by `DoorReport`."""

    ca: bytes
    certificate: bytes
    key: bytes


class DoorRules(Message, frozen=True, kw_only=True, tag="door_rules"):
    """All that may be had at the door from now on; answered by `DoorReport` with this version.

    `ports` are loopback ports for each of `guests`, the members that are there now: a certificate outlives its node.
    `blobs` names for each input the members that may have it.
    """

    version: int
    ports: tuple[int, ...] = ()
    guests: tuple[str, ...] = ()
    blobs: dict[str, tuple[str, ...]] = {}


class ProbeDoor(Message, frozen=True, kw_only=True, tag="door_probe"):
    """Try to reach the door of the member `name` at these addresses; answered by `DoorProbed`."""

    number: int
    name: str
    addresses: tuple[str, ...]
    port: int


class Route(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way to one member's door, and the loopback ports that it leads to."""

    name: str
    address: str
    port: int
    ports: tuple[int, ...] = ()


class UseRoutes(Message, frozen=True, kw_only=True, tag="door_routes"):
    """These replace what is known of the members that they name; one without ports is no way any more.

    Connections to other ports that the node listens on are relayed.
    """

    routes: tuple[Route, ...] = ()


class FetchBlob(Message, frozen=True, kw_only=True, tag="door_fetch"):
    """Get an input from another member's door, from where an earlier try ended; answered by `BlobFetched`."""

    number: int
    sha256: str
    size: int
    route: Route
    timeout_s: float


DoorOrder = OpenDoor | DoorRules | ProbeDoor | UseRoutes | FetchBlob


# ── reports ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class DoorReport(Message, frozen=True, kw_only=True, tag="door"):
    """The door: its port, addresses of this node as its own system names them, and the rules that hold; or `error`."""

    port: int = 0
    addresses: tuple[str, ...] = ()
    version: int = 0
    error: str = ""


class DoorProbed(Message, frozen=True, kw_only=True, tag="door_probed"):
    """Which address answered, as whom it should, and how quickly; or `error`."""

    number: int
    address: str = ""
    round_trip_ms: float = 0.0
    error: str = ""


class RouteBroken(Message, frozen=True, kw_only=True, tag="door_broken"):
    """A member's door could not be reached; its route is not used until it is ordered again."""

    name: str
    reason: str


class BlobFetched(Message, frozen=True, kw_only=True, tag="door_fetched"):
    """The input is here, whole and checked; or `error`. `is_wrong`: it came, and was not what it should be.

    `have`: how much of it is here.
    """

    number: int
    sha256: str
    have: int = 0
    error: str = ""
    is_wrong: bool = False


DoorReports = DoorReport | DoorProbed | RouteBroken | BlobFetched


# ── at the door ──────────────────────────────────────────────────────────────────────────────────────────────────────


class AskPort(msgspec.Struct, frozen=True, kw_only=True, tag="port", forbid_unknown_fields=True):
    """To be connected to a loopback port; its bytes follow the answer, in both directions."""

    port: int


class AskBlob(msgspec.Struct, frozen=True, kw_only=True, tag="blob", forbid_unknown_fields=True):
    """An input's bytes from an offset on; they follow the answer."""

    sha256: str
    offset: int


class AskEcho(msgspec.Struct, frozen=True, kw_only=True, tag="echo", forbid_unknown_fields=True):
    """Nothing but an answer."""


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a door says. `size`: of the whole input."""

    error: str = ""
    size: int = 0


Ask = AskPort | AskBlob | AskEcho
T = TypeVar("T")


def frame(message: Ask | Answer) -> bytes:
    """A message as it is sent at a door."""
    body = msgspec.msgpack.encode(message)
    return struct.pack(">H", len(body)) + body


async def read_frame(reader: asyncio.StreamReader, kind: type[T]) -> T:
    """The next message.

    Raises:
        WireError: too long, or none of this kind.
        EOFError: the other end has ended.
    """
    (size,) = struct.unpack(">H", await reader.readexactly(2))
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a message of {size} bytes at the door")
    try:
        return msgspec.msgpack.decode(await reader.readexactly(size), type=kind)
    except msgspec.MsgspecError as error:
        raise WireError(f"no message for a door: {error}") from None
