"""Which ways between nodes are direct, and where a node gets an input from: decided here, each with its reason. Pure.

What a node says of itself is bounded first. A node that lies about its addresses must not make another one knock at
machines of its choice: only the host that the user's side dials itself counts, and private addresses of a network in
which the other node has an address of its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from jupyter_gpumarket.models import Record

MAX_CLAIMED = 8
MAX_TRIED = 3
# How often a node may change what it says, over its whole lease.
MAX_CLAIMS = 20
DOOR_PORTS = range(1024, 65_536)
PRIVATE = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
# Two nodes count as neighbours when their addresses agree in so many bits.
NEAR_BITS = {4: 16, 6: 48}
# A direct way this much longer than the one through the user's side is not worth it.
LONGER_MS = 50.0
LONGER_TIMES = 2.0
FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 900.0
LOOK_AGAIN_S = 300.0


class Claim(Record, frozen=True, kw_only=True):
    """What is believed of a node's door: its port, the SSH host that the user's side dials, its private addresses."""

    port: int = 0
    host: str = ""
    private: tuple[str, ...] = ()
    reason: str = ""


class Way(Record, frozen=True, kw_only=True):
    """How one node reaches another one, and why."""

    is_direct: bool = False
    reason: str = "it has not been looked for yet"
    address: str = ""
    round_trip_ms: float = 0.0


class Holder(Record, frozen=True, kw_only=True):
    """A node that has an input, as seen from one that needs it. Rates of 0: not measured yet."""

    lease_id: str
    name: str
    way: Way
    is_up: bool = True
    guests: int = 0
    bytes_per_s: float = 0.0
    has_failed: bool = False


class Source(Record, frozen=True, kw_only=True):
    """Where a node gets an input from: a holder, or the user's side (``""``)."""

    lease_id: str = ""
    reason: str = ""


def believed(port: int, addresses: Sequence[str], ssh_host: str) -> Claim:
    """Of what a node says about its door, what another node may be sent to."""
    if port not in DOOR_PORTS:
        return Claim(reason=f"it names port {port}, which is no port of a door")
    if len(addresses) > MAX_CLAIMED:
        return Claim(reason=f"it names {len(addresses)} addresses; {MAX_CLAIMED} are the most")
    return Claim(port=port, host="" if is_inner(ssh_host) else ssh_host, private=private_of(addresses))


def private_of(addresses: Sequence[str]) -> tuple[str, ...]:
    """The private ones of what a node says are its addresses."""
    private: list[str] = []
    for text in addresses[:MAX_CLAIMED]:
        address = _address(text)
        if address is not None and any(address in net for net in PRIVATE if net.version == address.version):
            private.append(str(address))
    return tuple(dict.fromkeys(private))


def tried(claim: Claim, own: Claim) -> tuple[str, ...]:
    """The addresses at which a node (that has `own`) looks for the door of another one, the nearest first."""
    near = [text for text in claim.private if any(_are_near(text, other) for other in own.private)]
    found = [text for text in near if text not in own.private]
    return tuple(dict.fromkeys([*found, *([claim.host] if claim.host else [])]))[:MAX_TRIED]


def choose_way(*, address: str, round_trip_ms: float, error: str, relayed_ms: float | None) -> Way:
    """What a probe means. `relayed_ms`: there and back through the user's side, where that is known."""
    if error or not address:
        return Way(reason=f"they do not reach each other ({error or 'no address'})")
    limit_ms = None if relayed_ms is None else LONGER_TIMES * relayed_ms + LONGER_MS
    if limit_ms is not None and round_trip_ms > limit_ms:
        reason = f"directly it is {round_trip_ms:.0f} ms there and back, through here {relayed_ms:.0f} ms"
        return Way(reason=reason, address=address, round_trip_ms=round_trip_ms)
    reason = f"{address} answers in {round_trip_ms:.1f} ms"
    return Way(is_direct=True, reason=reason, address=address, round_trip_ms=round_trip_ms)


def pause_s(failures: int) -> float:
    """How long until a way that failed so often is looked for again."""
    return min(LONGEST_PAUSE_S, FIRST_PAUSE_S * (1 << min(max(failures - 1, 0), 10)))


def choose_source(holders: Sequence[Holder], *, user_bytes_per_s: float) -> Source:
    """Where an input comes from. The user's line is spared wherever a node that is reached directly has it already.

    Through the relay it is never quicker: each byte would cross the user's line twice.
    """
    if not holders:
        return Source(reason="no other node has it")
    direct = [holder for holder in holders if holder.way.is_direct]
    if not direct:
        return Source(
            reason="nodes that have it are not reached directly, and by way of here each byte would come twice"
        )
    usable = [holder for holder in direct if holder.is_up and not holder.has_failed]
    if not usable:
        return Source(reason="nodes that have it did not deliver, or are silent")
    best = min(usable, key=lambda holder: (holder.guests, -holder.bytes_per_s, holder.way.round_trip_ms))
    if 0 < best.bytes_per_s < user_bytes_per_s:
        mine, theirs = user_bytes_per_s / 1e6, best.bytes_per_s / 1e6
        return Source(reason=f"from here it comes quicker ({mine:.0f} MB/s) than from {best.name} ({theirs:.0f} MB/s)")
    return Source(lease_id=best.lease_id, reason=f"{best.name} has it: {best.way.reason}")


def is_inner(host: str) -> bool:
    """Whether a host name means something else on each machine."""
    address = _address(host)
    if address is None:
        return host in ("", "localhost") or host.endswith(".localhost")
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


def _are_near(one: str, other: str) -> bool:
    first, second = ipaddress.ip_address(one), ipaddress.ip_address(other)
    return first.version == second.version and second in ipaddress.ip_network(
        f"{one}/{NEAR_BITS[first.version]}", strict=False
    )


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
