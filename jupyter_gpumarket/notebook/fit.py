"""Whether a fan-out pays on these nodes: bytes, time and cost before it starts, with their uncertainty. Pure.

Rented machines are often far from each other, and then moving data between them takes longer than computing on it.
A guess with honest limits, made before the money is spent, is worth more than a profile afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jupyter_gpumarket.api import ClusterView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.models import Lease, Record
from jupyter_gpumarket.money import cost_nusd, format_usd

# What a relayed way between two nodes carries at most, whatever their lines can: measured over one link (benchmarks).
RELAY_MBPS = 1200.0
# Lines where nothing is known: a home connection's upstream to a data centre.
UNKNOWN_MBPS = 100.0
SLOWEST_MBPS = 0.01
NETWORK_BOUND_SHARE = 0.5
WORTH_A_WORD_S = 1.0
HOME = "the line of this machine"


class Line(Record, frozen=True, kw_only=True):
    """A node's line, Mbit/s each way; 0 where it is not known. `is_measured`: by us, not told by a marketplace."""

    name: str
    up_mbps: float = 0.0
    down_mbps: float = 0.0
    is_measured: bool = False


class Work(Record, frozen=True, kw_only=True):
    """What is to be done. `seconds_each` is one task's time on one worker; `spread` by how much that may be off (2.0:
    half to double). `moved_bytes`: what goes between nodes; `user_bytes`: what goes from this side to the nodes, and
    `back_bytes` from them to this side.
    """

    tasks: int
    seconds_each: float
    spread: float = 2.0
    moved_bytes: int = 0
    user_bytes: int = 0
    back_bytes: int = 0


def tasks_in(collection: Any) -> int:
    """How many tasks a Dask collection's graph has; 1 where there is none."""
    graph = getattr(collection, "__dask_graph__", None)
    return max(1, len(graph())) if graph is not None else 1


def bytes_in(collection: Any) -> int:
    """How large a Dask collection is, where it knows that; 0 where it does not."""
    size = getattr(collection, "nbytes", 0)
    return int(size) if isinstance(size, int | float) and 0 <= size < 2**63 else 0


class Span(Record, frozen=True, kw_only=True):
    """From the best to the worst that is likely, and what is most likely."""

    low: float
    likely: float
    high: float


class Estimate(Record, frozen=True, kw_only=True):
    """What a fan-out takes. `network_share`: the part of the time that goes into moving data."""

    compute_s: Span
    network_s: Span
    total_s: Span
    cost_low_nusd: int
    cost_likely_nusd: int
    cost_high_nusd: int
    network_share: float
    slowest: str
    warnings: tuple[str, ...] = ()

    def sentence(self) -> str:
        """For people."""
        total = f"about {in_words(self.total_s.likely)} ({in_words(self.total_s.low)} to {in_words(self.total_s.high)})"
        cost = f"{format_usd(self.cost_likely_nusd, places=2)}"
        limits = f"{format_usd(self.cost_low_nusd, places=2)} to {format_usd(self.cost_high_nusd, places=2)}"
        return f"{total}, {cost} ({limits}); {self.network_share:.0%} of it is moving data"


def estimate(work: Work, lines: Sequence[Line], *, workers: int, rate_nusd_hour: int, is_relayed: bool) -> Estimate:
    """What the work takes on nodes with these lines, all of which together cost so much an hour.

    What moves between nodes is taken to be spread evenly. Through the relay each byte also crosses the user's side
    twice, once in and once out, so that side's line (the first of `lines` when relayed) limits all of it.

    Raises:
        ValueError: no worker, or no line.
    """
    if workers < 1 or not lines:
        raise ValueError("an estimate needs at least one worker and one line")
    waves = -(-work.tasks // workers)
    likely_s = waves * work.seconds_each
    compute = Span(low=likely_s / work.spread, likely=likely_s, high=likely_s * work.spread)
    slowest, network_s, doubt = _network(work, lines, is_relayed=is_relayed)
    network = Span(low=network_s / doubt, likely=network_s, high=network_s * doubt)
    # Dask overlaps both: at best the longer one counts alone, at worst they follow each other.
    total = Span(
        low=max(compute.low, network.low),
        likely=max(compute.likely, network.likely) + min(compute.likely, network.likely) / 2,
        high=compute.high + network.high,
    )
    share = network_s / (network_s + likely_s) if network_s + likely_s else 0.0
    return Estimate(
        compute_s=compute,
        network_s=network,
        total_s=total,
        cost_low_nusd=_cost(rate_nusd_hour, total.low),
        cost_likely_nusd=_cost(rate_nusd_hour, total.likely),
        cost_high_nusd=_cost(rate_nusd_hour, total.high),
        network_share=share,
        slowest=slowest.name,
        warnings=_warnings(work, slowest, times_s=(network_s, likely_s), workers=workers),
    )


def _network(work: Work, lines: Sequence[Line], *, is_relayed: bool) -> tuple[Line, float, float]:
    """The slowest line for its part of the bytes, how long that takes, and by which factor it may be off."""
    has_user = is_relayed and len(lines) > 1
    nodes = lines[1:] if has_user else lines
    each = work.moved_bytes / len(lines)
    into, out = each + work.user_bytes / len(nodes), each + work.back_bytes / len(nodes)
    times = [(max(out / _bytes_s(line.up_mbps), into / _bytes_s(line.down_mbps)), line) for line in nodes]
    if has_user:
        user = lines[0]
        up, down = min(user.up_mbps or UNKNOWN_MBPS, RELAY_MBPS), min(user.down_mbps or UNKNOWN_MBPS, RELAY_MBPS)
        there, back = work.moved_bytes + work.user_bytes, work.moved_bytes + work.back_bytes
        times.append((max(there / _bytes_s(up), back / _bytes_s(down)), user))
    seconds, slowest = max(times, key=lambda pair: pair[0])
    known = bool(slowest.up_mbps and slowest.down_mbps)
    return slowest, seconds, 1.5 if slowest.is_measured else 2.0 if known else 5.0


def _bytes_s(mbps: float) -> float:
    return max(mbps or UNKNOWN_MBPS, SLOWEST_MBPS) * 1e6 / 8


def _cost(rate_nusd_hour: int, seconds: float) -> int:
    return cost_nusd(rate_nusd_hour, round(seconds * 1000))


def _bound_by_network(work: Work, slowest: Line, *, network_s: float, compute_s: float) -> str:
    times = f"about {in_words(network_s)}, through {slowest.name} above all, and computing {in_words(compute_s)}"
    if work.moved_bytes:
        return (
            f"this is bound by the network: moving {work.moved_bytes / 1e9:.3g} GB between the nodes takes {times}. "
            "Fewer and larger nodes, or nodes in one place, will do better than more of them"
        )
    there, back = work.user_bytes / 1e9, work.back_bytes / 1e9
    return (
        f"this is bound by the network: {there:.3g} GB to the nodes and {back:.3g} GB back take {times}. Let the nodes "
        "fetch the data themselves, or send less of it: more nodes will not make it quicker"
    )


def path_of(lease: Lease) -> Line:
    """The way between this side and a node: as the probe has measured it, else as the offer tells the node's line."""
    offer, name = lease.offer, one_line(lease.name, 60)
    network = lease.probe.get("network")
    told = network if isinstance(network, dict) else {}
    # The probe names directions as this side sees them; what comes down here is what the node sends up.
    up, down = _positive(told.get("down_mbps")), _positive(told.get("up_mbps"))
    if up and down:
        return Line(name=name, up_mbps=up, down_mbps=down, is_measured=True)
    return Line(name=name, up_mbps=offer.up_mbps if offer else 0.0, down_mbps=offer.down_mbps if offer else 0.0)


def own_line_of(lease: Lease) -> Line:
    """A node's own line, as its marketplace tells it: for nodes that reach each other without this side."""
    offer = lease.offer
    return Line(
        name=one_line(lease.name, 60),
        up_mbps=offer.up_mbps if offer else 0.0,
        down_mbps=offer.down_mbps if offer else 0.0,
    )


def home_of(paths: Sequence[Line]) -> Line:
    """This machine's line: at least as good as the best way to a node that was measured."""
    measured = [path for path in paths if path.is_measured]
    if not measured:
        return Line(name=HOME)
    up, down = max(path.down_mbps for path in measured), max(path.up_mbps for path in measured)
    return Line(name=HOME, up_mbps=up, down_mbps=down, is_measured=True)


def lines_of(leases: Sequence[Lease], *, is_relayed: bool) -> list[Line]:
    """The lines that `estimate` wants: between nodes through this side, with its own line first, or without it."""
    if not is_relayed:
        return [own_line_of(lease) for lease in leases] or [Line(name="a node")]
    paths = [path_of(lease) for lease in leases]
    return [home_of(paths), *paths]


def _positive(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value < 1e7 else 0.0


def shortage(found: Estimate, *, left_nusd: int, left_s: float) -> str:
    """Why money or time may not do for it; empty when they do even in the worst case that is likely."""
    needs = f"{format_usd(found.cost_likely_nusd, places=2)}"
    if found.cost_high_nusd > left_nusd:
        surely = "will not do" if found.cost_low_nusd > left_nusd else "may not do"
        return (
            f"the budget {surely}: this needs about {needs}, up to {format_usd(found.cost_high_nusd, places=2)}, and "
            f"{format_usd(max(0, left_nusd), places=2)} is left; `%gpu extend --budget` raises it"
        )
    if found.total_s.high > left_s:
        surely = "will not do" if found.total_s.low > left_s else "may not do"
        return (
            f"the agreed time {surely}: this takes about {in_words(found.total_s.likely)}, up to "
            f"{in_words(found.total_s.high)}, and {in_words(max(0.0, left_s))} are left; `%gpu extend --hours` adds"
        )
    return ""


def _warnings(work: Work, slowest: Line, *, times_s: tuple[float, float], workers: int) -> tuple[str, ...]:
    network_s, compute_s = times_s
    share = network_s / (network_s + compute_s) if network_s + compute_s else 0.0
    told = []
    # A share of nearly nothing is not worth a word.
    if share > NETWORK_BOUND_SHARE and network_s > WORTH_A_WORD_S:
        told.append(_bound_by_network(work, slowest, network_s=network_s, compute_s=compute_s))
    if work.tasks < workers:
        told.append(f"{work.tasks} tasks keep only {work.tasks} of {workers} workers busy")
    if work.tasks and work.seconds_each < 0.01:
        told.append("tasks of less than 10 ms are mostly overhead: put more into each of them")
    if not (slowest.up_mbps and slowest.down_mbps):
        told.append(f"nothing is known of the line of {slowest.name}: {UNKNOWN_MBPS:g} Mbit/s was assumed")
    return tuple(told)


def on_cluster(view: ClusterView, work: Work) -> Estimate:
    """The estimate for a cluster as it is now."""
    is_relayed = view.dask is not None and view.dask.relayed > 0
    workers = max(1, sum(worker.state == "running" for worker in view.dask.workers) if view.dask else 1)
    lines = lines_of(view.leases, is_relayed=is_relayed)
    return estimate(work, lines, workers=workers, rate_nusd_hour=view.rate_nusd_hour, is_relayed=is_relayed)
