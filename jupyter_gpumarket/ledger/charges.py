"""From the facts of a lease to the lines of the ledger. Pure; the lines of a lease add up to its bill exactly.

How a bill is taken apart:

1. The bill of an attempt is the marketplace's own rule: the billed span, rounded up to its quantum, at least its
   minimum, times the hourly price, rounded up to the nano-dollar; plus disk, traffic (as much as the node itself has
   told) and fee where it charges them.
2. The span is cut wherever the set of running cells changes. The price of a piece from a to b is P(b) − P(a), where
   P(t) = price × t rounded down, at the wall time t. So pieces add up without loss, and what a cell costs depends on
   nothing but its own time and the cells beside it: not on when the lease began or will end.
3. A piece with k cells is shared equally by them. A piece without a cell is BOOT before the node was ready, IDLE after.
4. What the marketplace rounds up is time paid for and not used: it goes to the last BOOT or IDLE piece.

So a cell's cost is settled when the cell ends, while the lease still runs. The IDLE of a running lease may shrink: a
cell that starts within a paid-for hour uses what was idle until then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise

from jupyter_gpumarket.api import RunCost
from jupyter_gpumarket.models import (
    ENDED_RUNS,
    ENDED_STATES,
    Billing,
    CellRun,
    Charge,
    ChargeKind,
    Lease,
    LeaseRequest,
    LeaseState,
    Offer,
    Owner,
    Record,
)
from jupyter_gpumarket.money import MS_PER_HOUR, cost_nusd, native_text, split

MIB_PER_GIB = 1024
BYTES_PER_GIB = 1024**3


class Span(Record, frozen=True, kw_only=True):
    """What one attempt may be charged for: one rental, from its first billed moment to its last (or to now)."""

    number: int
    marketplace: str
    machine_id: str
    rate_nusd_hour: int
    from_ms: int
    to_ms: int
    ready_ms: int | None = None
    failed: bool = False
    received_bytes: int = 0
    sent_bytes: int = 0
    offer: Offer | None = None

    @property
    def billing(self) -> Billing:
        """The marketplace's rule; per second where the offer is not known any more."""
        return self.offer.billing if self.offer else Billing()


class Bill(Record, frozen=True, kw_only=True):
    """What a marketplace charges for one span by its own rule."""

    billed_ms: int
    compute_nusd: int
    storage_nusd: int
    traffic_nusd: int
    fee_nusd: int

    @property
    def total_nusd(self) -> int:
        """All of it."""
        return self.compute_nusd + self.storage_nusd + self.traffic_nusd + self.fee_nusd


def bill(span: Span) -> Bill:
    """The marketplace's rule applied to a span."""
    rule = span.billing
    quantum_ms = max(1, rule.quantum_s * 1000)
    billed_ms = max(-(-(span.to_ms - span.from_ms) // quantum_ms) * quantum_ms, rule.minimum_s * 1000)
    disk_mib = math.ceil((span.offer.disk_gib if span.offer else 0) * MIB_PER_GIB)
    return Bill(
        billed_ms=billed_ms,
        compute_nusd=cost_nusd(span.rate_nusd_hour, billed_ms),
        storage_nusd=-(-rule.storage_nusd_gib_hour * disk_mib * billed_ms // (MIB_PER_GIB * MS_PER_HOUR)),
        traffic_nusd=(
            -(-rule.ingress_nusd_gib * span.received_bytes // BYTES_PER_GIB)
            - (-rule.egress_nusd_gib * span.sent_bytes // BYTES_PER_GIB)
        ),
        fee_nusd=rule.fee_nusd,
    )


def spans(lease: Lease, now_ms: int) -> list[Span]:
    """Every attempt of a lease that may be charged, oldest first.

    An attempt ends its bill when the marketplace confirmed the end. So the current one of an open lease, also one whose
    release is asked and not confirmed, runs up to now.
    """
    ended = [attempt for attempt in lease.attempts if not _is_current(lease, attempt.rental_id, attempt.billed_from_ms)]
    found = [
        Span(
            number=number,
            marketplace=attempt.marketplace,
            machine_id=attempt.machine_id,
            rate_nusd_hour=attempt.price_nusd_hour,
            from_ms=attempt.billed_from_ms,
            to_ms=max(attempt.billed_from_ms, _first(attempt.billed_to_ms, attempt.ended_ms, now_ms)),
            failed=True,
            offer=attempt.offer,
        )
        for number, attempt in enumerate(ended, 1)
        if attempt.billed_from_ms is not None
    ]
    if lease.billed_from_ms is None:
        return found
    over = lease.state in ENDED_STATES
    current = Span(
        number=len(ended) + 1,
        marketplace=lease.offer.marketplace if lease.offer else "",
        machine_id=lease.offer.machine_id if lease.offer else "",
        rate_nusd_hour=lease.price_nusd_hour,
        from_ms=lease.billed_from_ms,
        to_ms=max(lease.billed_from_ms, _first(lease.billed_to_ms, lease.changed_ms) if over else now_ms),
        ready_ms=lease.ready_ms,
        failed=lease.state is LeaseState.FAILED and lease.ready_ms is None,
        received_bytes=lease.received_bytes,
        sent_bytes=lease.sent_bytes,
        offer=lease.offer,
    )
    return [*found, current]


def _is_current(lease: Lease, rental_id: str, billed_from_ms: int | None) -> bool:
    """Whether an entry of `attempts` is what the lease's own fields tell already: it must not be charged twice."""
    return lease.billed_from_ms is not None and (billed_from_ms, rental_id) == (lease.billed_from_ms, lease.rental_id)


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)


def lease_charges(lease: Lease, runs: Iterable[CellRun], now_ms: int) -> list[Charge]:
    """All lines of a lease, oldest attempt first. Runs of other leases are passed over.

    The amounts of each attempt add up to its bill. Lines are `final` only once the lease has ended.
    """
    known: dict[str, CellRun] = {}
    for run in runs:
        if run.lease_id == lease.lease_id:
            known.setdefault(run.run_id, run)
    own = sorted(known.values(), key=lambda run: run.run_id)
    lines: list[Charge] = []
    for span in spans(lease, now_ms):
        lines += _failed_lines(lease, span) if span.failed else _lines(lease, span, own, now_ms)
    assert sum(line.amount_nusd for line in lines) == sum(bill(span).total_nusd for span in spans(lease, now_ms))
    assert all(line.amount_nusd >= 0 for line in lines)
    return lines


def _failed_lines(lease: Lease, span: Span) -> list[Charge]:
    total = bill(span).total_nusd
    return [_line(lease, span, ChargeKind.FAILED_ATTEMPT, total, (span.from_ms, span.to_ms))] if total else []


def _lines(lease: Lease, span: Span, runs: Sequence[CellRun], now_ms: int) -> list[Charge]:
    told = bill(span)
    shares: dict[str, tuple[CellRun, int]] = {}
    gaps: list[tuple[ChargeKind, int, int, int]] = []
    for piece_from, piece_to, running in _pieces(span, runs, now_ms):
        amount = _price(span, piece_to) - _price(span, piece_from)
        if running:
            for run, part in zip(running, split(amount, [1] * len(running)), strict=True):
                shares[run.run_id] = (run, shares.get(run.run_id, (run, 0))[1] + part)
        else:
            is_boot = span.ready_ms is None or piece_from < span.ready_ms
            gaps.append((ChargeKind.BOOT if is_boot else ChargeKind.IDLE, amount, piece_from, piece_to))
    _add_rounding(gaps, span, told)
    lines = [_line(lease, span, kind, amount, (start, end)) for kind, amount, start, end in gaps]
    lines += [_cell_line(lease, span, run, amount, now_ms) for run, amount in shares.values()]
    if told.storage_nusd:
        lines.append(_line(lease, span, ChargeKind.STORAGE, told.storage_nusd, (span.from_ms, span.to_ms)))
    if told.traffic_nusd:
        lines.append(_line(lease, span, ChargeKind.TRAFFIC, told.traffic_nusd, (span.from_ms, span.to_ms)))
    if told.fee_nusd:
        lines.append(_line(lease, span, ChargeKind.FEE, told.fee_nusd, (span.from_ms, span.from_ms)))
    return sorted(lines, key=lambda line: (line.start_ms, line.charge_id))


def _price(span: Span, at_ms: int) -> int:
    return span.rate_nusd_hour * at_ms // MS_PER_HOUR


def _pieces(span: Span, runs: Sequence[CellRun], now_ms: int) -> Iterator[tuple[int, int, list[CellRun]]]:
    """The span cut wherever the set of running cells changes, and where the node became ready; cells in order of id."""
    clipped = [(run, *_clipped(span, run, now_ms)) for run in runs]
    spent = [(run, start, end) for run, start, end in clipped if start < end]
    starting: dict[int, list[CellRun]] = defaultdict(list)
    ending: dict[int, list[CellRun]] = defaultdict(list)
    for run, start, end in spent:
        starting[start].append(run)
        ending[end].append(run)
    edges = {span.from_ms, span.to_ms, *starting, *ending}
    # A cell that runs while the node becomes ready is not cut there: its share would be rounded twice.
    if span.ready_ms is not None and not any(start < span.ready_ms < end for _, start, end in spent):
        edges.add(min(max(span.ready_ms, span.from_ms), span.to_ms))
    running: dict[str, CellRun] = {}
    for start, end in pairwise(sorted(edges)):
        for run in ending[start]:
            del running[run.run_id]
        for run in starting[start]:
            running[run.run_id] = run
        yield start, end, sorted(running.values(), key=lambda run: run.run_id)


def _clipped(span: Span, run: CellRun, now_ms: int) -> tuple[int, int]:
    """The part of a run inside the span; empty when it never started."""
    if run.started_ms is None:
        return span.from_ms, span.from_ms
    end = run.ended_ms if run.ended_ms is not None else now_ms
    return max(span.from_ms, run.started_ms), min(span.to_ms, end)


def _add_rounding(gaps: list[tuple[ChargeKind, int, int, int]], span: Span, told: Bill) -> None:
    """Put what the marketplace rounds up on the last piece without a cell, or on a line of its own."""
    rest = told.compute_nusd - (_price(span, span.to_ms) - _price(span, span.from_ms))
    assert rest >= 0, "the marketplace's rule never charges less than the time itself"
    if not rest:
        return
    paid_until = span.from_ms + told.billed_ms
    if gaps and gaps[-1][3] == span.to_ms:
        kind, amount, start, _ = gaps.pop()
        gaps.append((kind, amount + rest, start, paid_until))
        return
    kind = ChargeKind.BOOT if span.ready_ms is None else ChargeKind.IDLE
    gaps.append((kind, rest, span.to_ms, paid_until))


def _cell_line(lease: Lease, span: Span, run: CellRun, amount: int, now_ms: int) -> Charge:
    start, end = _clipped(span, run, now_ms)
    return _line(lease, span, ChargeKind.CELL, amount, (start, end), owner=run.owner, run_id=run.run_id)


def _line(
    lease: Lease,
    span: Span,
    kind: ChargeKind,
    amount_nusd: int,
    when: tuple[int, int],
    *,
    owner: Owner | None = None,
    run_id: str = "",
) -> Charge:
    start_ms, end_ms = when
    detail = run_id or str(start_ms)
    native = span.offer.native if span.offer else None
    return Charge(
        charge_id=f"{lease.lease_id}/{span.number}/{kind}/{detail}",
        lease_id=lease.lease_id,
        kind=kind,
        amount_nusd=amount_nusd,
        start_ms=start_ms,
        end_ms=end_ms,
        owner=owner or lease.request.owner,
        run_id=run_id,
        marketplace=span.marketplace,
        machine_id=span.machine_id,
        gpu=(span.offer.gpu or span.offer.gpu_raw) if span.offer else "",
        gpu_count=span.offer.gpu_count if span.offer else 0,
        rate_nusd_hour=span.rate_nusd_hour,
        native_amount=native_text(amount_nusd, native.rate if native else "1"),
        native_currency=native.currency if native else "USD",
        native_rate=native.rate if native else "1",
        native_rate_source=native.source if native else "the marketplace bills in USD",
        native_rate_ms=native.rate_ms if native else start_ms,
        final=lease.state in ENDED_STATES,
    )


def lease_money(lease: Lease, runs: Iterable[CellRun], now_ms: int) -> tuple[int, int, int]:
    """(everything it cost so far, of that BOOT, of that IDLE), nano-dollars."""
    lines = lease_charges(lease, runs, now_ms)
    return (
        sum(line.amount_nusd for line in lines),
        sum(line.amount_nusd for line in lines if line.kind is ChargeKind.BOOT),
        sum(line.amount_nusd for line in lines if line.kind is ChargeKind.IDLE),
    )


def run_cost(lease: Lease, runs: Iterable[CellRun], run_id: str, now_ms: int) -> RunCost:
    """A cell run and its share of its lease's bill. Final when the run has ended: later facts do not change its share.

    Raises:
        KeyError: no run of that id among `runs`.
    """
    costs = run_costs(lease, runs, {run_id}, now_ms)
    if not costs:
        raise KeyError(f"no run {run_id} on lease {lease.lease_id}")
    return costs[0]


def run_costs(lease: Lease, runs: Iterable[CellRun], wanted: Collection[str], now_ms: int) -> list[RunCost]:
    """The same for several runs of a lease, whose bill is divided only once."""
    runs = list(runs)
    lines = lease_charges(lease, runs, now_ms)
    shares: dict[str, int] = defaultdict(int)
    for line in lines:
        shares[line.run_id] += line.amount_nusd
    return [
        RunCost(
            run=run,
            node=lease.name,
            duration_ms=_duration_ms(run, now_ms),
            amount_nusd=shares[run.run_id],
            rate_nusd_hour=lease.price_nusd_hour,
            final=run.status in ENDED_RUNS,
            lease_total_nusd=sum(line.amount_nusd for line in lines),
            lease_boot_nusd=sum(line.amount_nusd for line in lines if line.kind is ChargeKind.BOOT),
            lease_idle_nusd=sum(line.amount_nusd for line in lines if line.kind is ChargeKind.IDLE),
        )
        for run in runs
        if run.run_id in wanted
    ]


def _duration_ms(run: CellRun, now_ms: int) -> int:
    if run.started_ms is None:
        return 0
    return max(0, (run.ended_ms if run.ended_ms is not None else now_ms) - run.started_ms)


def worst_case_nusd(lease: Lease) -> int:
    """The most a lease can come to cost, nano-dollars.

    Ended: what it cost. Ready: its failed attempts and its bill up to the deadline, at which the node stops itself.
    Before: what the request allows in all, since another offer may yet have to be tried.
    """
    if lease.state in ENDED_STATES:
        return sum(bill(span).total_nusd for span in spans(lease, lease.changed_ms))
    allowed = asked_nusd(lease.request)
    if lease.deadline_ms is None or lease.billed_from_ms is None:
        return allowed
    to_deadline = sum(bill(span).total_nusd for span in spans(lease, lease.deadline_ms))
    return to_deadline if lease.ready_ms is not None else max(allowed, to_deadline)


def asked_nusd(request: LeaseRequest, price_nusd_hour: int | None = None) -> int:
    """What a request may cost at most: its budget, or less where its hours at the (highest) price come to less."""
    price = request.query.max_price_nusd_hour if price_nusd_hour is None else price_nusd_hour
    if price is None:
        return request.budget_nusd
    return min(request.budget_nusd, cost_nusd(price, request.max_s * 1000))
