"""How a try of an item ended, in the words of the table, of the disk and of the doors. Pure."""

from __future__ import annotations

import random

from jupyter_gpumarket.api import ItemState, ItemView
from jupyter_gpumarket.cluster.maps.seat import Seat
from jupyter_gpumarket.cluster.maps.table import Report, Table
from jupyter_gpumarket.mapfiles import Line
from jupyter_gpumarket.wire import mapping as mm


def item_view(table: Table, seat: Seat, outcome: mm.ItemOutcome, state: ItemState, *, n: int, now_ms: int) -> ItemView:
    """An item that has ended, as doors see it: what the node says is bounded."""
    is_ok = state is ItemState.OK
    return ItemView(
        n=n,
        index=table.base(outcome.index),
        state=state,
        lease_id=seat.lease_id,
        run_id=seat.run.run_id,
        tries=table.tries(outcome.index) + 1,
        took_ms=min(max(0, outcome.took_ms), 10**9),
        ended_ms=now_ms,
        check=table.is_check(outcome.index),
        codec=outcome.codec[:40] if is_ok else "",
        size=outcome.size if is_ok else 0,
        sha256=outcome.sha256[:64] if is_ok else "",
        data=outcome.data if is_ok else b"",
        stdout=outcome.stdout[: 2 * mm.MAX_ITEM_TEXT],
        stderr=outcome.stderr[: 2 * mm.MAX_ITEM_TEXT],
        error_name=outcome.error_name[:200],
        error_value=outcome.error_value[:5000],
        traceback=tuple(line[:5000] for line in outcome.traceback[:100]),
    )


def result_name(view: ItemView) -> str:
    """The file of a large result."""
    return f"{'check' if view.check else 'result'}-{view.index}"


def sample(seed: str, count: int, ppm: int) -> list[int]:
    """Which items are verified: at least one when any share is asked for."""
    wanted = min(count, -(-count * ppm // 1_000_000))
    return sorted(random.Random(seed).sample(range(count), wanted))  # noqa: S311 - a secret seed, not a secret


def report(line: Line) -> tuple[Report, ItemState | None]:
    """A line of the disk, for the table."""
    told = Report(index=line.entry, attempt=line.attempt, lease_id=line.lease_id, status=line.status)
    return told, None if line.view is None else line.view.state


def line(told: Report, view: ItemView | None) -> Line:
    """A try's end, for the disk."""
    return Line(entry=told.index, attempt=told.attempt, lease_id=told.lease_id, status=told.status, view=view)
