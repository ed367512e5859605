"""Our own record of machines, from the leases that we had on them. Pure: no I/O, no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from jupyter_gpumarket.api import OwnRecord, Reconciliation
from jupyter_gpumarket.models import Lease, LeaseState, Machine

PPM = 1_000_000
Place = tuple[str, str]


def own_records(
    machines: Sequence[Machine], leases: Sequence[Lease] = (), bills: Mapping[str, Reconciliation] | None = None
) -> dict[Place, OwnRecord]:
    """What is known of every machine that we ever rented, by (marketplace, machine).

    Args:
        machines: how often each was good and bad.
        leases: open and ended ones, oldest first.
        bills: by lease, how its bill compared with the marketplace's own.
    """
    judged = {(machine.marketplace, machine.machine_id): machine for machine in machines}
    stays: dict[Place, list[Lease]] = {}
    for lease in leases:
        if lease.offer is not None and lease.ready_ms is not None:
            stays.setdefault((lease.offer.marketplace, lease.offer.machine_id), []).append(lease)
    return {place: _record(judged.get(place), stays.get(place, []), bills or {}) for place in judged.keys() | stays}


def _record(machine: Machine | None, stays: Sequence[Lease], bills: Mapping[str, Reconciliation]) -> OwnRecord:
    boots = [boot for lease in stays if (boot := _boot_s(lease)) is not None]
    compute = next((c for lease in reversed(stays) if (c := _best_compute(lease.probe)) is not None), None)
    speed = next((mbps for lease in reversed(stays) if (mbps := _down_mbps(lease.probe)) is not None), None)
    compared = [bills[lease.lease_id] for lease in stays if lease.lease_id in bills]
    ours = sum(bill.ours_nusd for bill in compared)
    return OwnRecord(
        good=machine.good if machine is not None else len(stays),
        bad=machine.bad if machine is not None else 0,
        boot_s=median(boots) if boots else None,
        tflops=compute,
        down_mbps=speed,
        gap_ppm=sum(bill.gap_nusd for bill in compared) * PPM // ours if ours else None,
        last_trouble=machine.last_reason if machine is not None else "",
    )


def _boot_s(lease: Lease) -> float | None:
    """From the create call to the first moment at which a cell could run."""
    asked_ms = lease.phases.get(LeaseState.RENTING.value)
    return None if asked_ms is None or lease.ready_ms is None else max(0, lease.ready_ms - asked_ms) / 1000


def _best_compute(probe: Mapping[str, Any]) -> float | None:
    """The probe's own measurement, TFLOP/s of its fastest device; a stranger's report, so anything may stand in it."""
    rows = probe.get("compute")
    if not isinstance(rows, list | tuple):
        return None
    found = [row.get("tflops") for row in rows if isinstance(row, Mapping)]
    return max((float(value) for value in found if isinstance(value, int | float) and value > 0), default=None)


def _down_mbps(probe: Mapping[str, Any]) -> float | None:
    network = probe.get("network")
    value = network.get("down_mbps") if isinstance(network, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
