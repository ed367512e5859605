"""`report`: what was spent, on what, and whether the marketplaces' own bills agree."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jupyter_gpumarket.api import CostQuery, Reconciliation
from jupyter_gpumarket.cli.tables import as_json, safe, text_table
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Charge, ChargeKind
from jupyter_gpumarket.money import format_usd

DAY_MS = 24 * 3_600_000
_KINDS = (ChargeKind.CELL, ChargeKind.IDLE, ChargeKind.BOOT)

KEYS: dict[str, Callable[[Charge], str]] = {
    "lease": lambda c: c.lease_id,
    "cell": lambda c: c.run_id or c.kind.value,
    "user": lambda c: c.owner.user or "-",
    "project": lambda c: c.owner.project or "-",
    "notebook": lambda c: c.owner.notebook or "-",
    "marketplace": lambda c: c.marketplace or "-",
    "gpu": lambda c: f"{c.gpu_count}× {c.gpu}" if c.gpu_count else "CPU",
    "kind": lambda c: c.kind.value,
    "day": lambda c: iso_utc(c.start_ms)[:10],
}


def report(arguments: argparse.Namespace) -> int:
    """Print or write the ledger."""
    if arguments.by not in KEYS:
        raise BadRequest(f"--by {arguments.by}: not one of {', '.join(KEYS)}")
    since_ms = 0 if arguments.days is None else round(time.time() * 1000 - arguments.days * DAY_MS)
    with connect() as client:
        charges = client.costs(CostQuery(since_ms=since_ms)).charges
        names = {view.lease.lease_id: view.lease.name for view in client.leases(all=True)}
        checked = client.reconcile() if arguments.reconcile else []
    if arguments.output:
        _write(charges, Path(arguments.output))
        print(f"{len(charges)} lines written to {arguments.output}")
        return 0
    if arguments.json:
        print(as_json({"charges": charges, "reconciliation": checked}))
        return 0
    print(cost_table(charges, arguments.by, names) if charges else "nothing was spent")
    if checked:
        print("\n" + reconciliation_table(checked, names))
    return 0


def print_report(client: Client) -> None:
    """The whole ledger by lease, and the marketplaces' own word on it."""
    names = {view.lease.lease_id: view.lease.name for view in client.leases(all=True)}
    charges = client.costs(CostQuery()).charges
    if charges:
        print(cost_table(charges, "lease", names))
    checked = client.reconcile()
    if checked:
        print("\n" + reconciliation_table(checked, names))


def cost_table(charges: Sequence[Charge], by: str, names: dict[str, str]) -> str:
    """One row per key, cells, idle and boot apart, and a total that is their exact sum."""
    groups: dict[str, list[Charge]] = {}
    for charge in charges:
        groups.setdefault(KEYS[by](charge), []).append(charge)
    rows = [[names.get(key, key), *_sums(group)] for key, group in groups.items()]
    rows.append(["total", *_sums(charges)])
    return text_table([by, "cells", "idle", "boot", "other", "total"], rows)


def _sums(charges: Sequence[Charge]) -> list[str]:
    told = [sum(c.amount_nusd for c in charges if c.kind is kind) for kind in _KINDS]
    total = sum(c.amount_nusd for c in charges)
    return [format_usd(amount, places=9) for amount in (*told, total - sum(told), total)]


def reconciliation_table(checked: Sequence[Reconciliation], names: dict[str, str]) -> str:
    """Our bill beside theirs, rental by rental."""
    rows = [
        [
            names.get(r.lease_id, r.lease_id),
            r.marketplace,
            format_usd(r.ours_nusd, places=9),
            format_usd(r.theirs_nusd, places=9),
            format_usd(r.gap_nusd, places=9),
        ]
        for r in checked
    ]
    reasons = [safe(f"{names.get(r.lease_id, r.lease_id)}: {r.explained}") for r in checked if r.explained]
    return "\n".join([text_table(["lease", "marketplace", "our ledger", "their bill", "gap"], rows), *reasons])


def _write(charges: Sequence[Charge], path: Path) -> None:
    from jupyter_gpumarket.ledger import export, reports

    if path.name.endswith(".focus.csv"):
        export.write(export.focus(charges), path)
    else:
        export.write(reports.frame(charges), path)
