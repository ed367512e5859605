"""The tables, and how a record becomes a row of its table.

Rows hold the whole record as JSON in `data`, plus the columns that queries need. A newer version of the same major
schema may only add tables, and columns that have a default, so that an older program still can write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from jupyter_gpumarket.journal.entries import storable_text
from jupyter_gpumarket.models import ENDED_STATES, Budget, CellRun, Charge, Lease, Machine

MAJOR = 1
MINOR = 0

metadata = sa.MetaData()

versions = sa.Table(
    "journal_version",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("major", sa.Integer, nullable=False),
    sa.Column("minor", sa.Integer, nullable=False),
    sa.Column("written_by", sa.Text, nullable=False),
)

# The end of the chain: an append moves it from what the writer knows to the new end, or fails. So two writers can
# never both succeed, even where a lock was lost, and entries cut off at the end are noticed.
head = sa.Table(
    "journal_head",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("rows", sa.Text, nullable=False),
    sa.Column("writer", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Index("entries_subject", "subject", "seq"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease_id", sa.Text, primary_key=True),
    sa.Column("request_id", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("is_open", sa.Integer, nullable=False, index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("lease_id", sa.Text, nullable=False, index=True),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("started_ms", sa.BigInteger),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("data", sa.Text, nullable=False),
)

charges = sa.Table(
    "charges",
    metadata,
    sa.Column("charge_id", sa.Text, primary_key=True),
    sa.Column("lease_id", sa.Text, nullable=False, index=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("amount_nusd", sa.BigInteger, nullable=False),
    sa.Column("start_ms", sa.BigInteger, nullable=False),
    sa.Column("end_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("data", sa.Text, nullable=False),
)

budgets = sa.Table(
    "budgets",
    metadata,
    sa.Column("scope", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("limit_nusd", sa.BigInteger, nullable=False),
    sa.Column("data", sa.Text, nullable=False),
)

machines = sa.Table(
    "machines",
    metadata,
    sa.Column("marketplace", sa.Text, primary_key=True),
    sa.Column("machine_id", sa.Text, primary_key=True),
    sa.Column("data", sa.Text, nullable=False),
)


def _lease(row: Lease) -> dict[str, Any]:
    return {
        "lease_id": row.lease_id,
        "request_id": row.request.request_id,
        "state": str(row.state),
        "is_open": int(row.state not in ENDED_STATES),
        "created_ms": row.created_ms,
    }


def _run(row: CellRun) -> dict[str, Any]:
    return {
        "run_id": row.run_id,
        "lease_id": row.lease_id,
        "status": str(row.status),
        "started_ms": row.started_ms,
        "ended_ms": row.ended_ms,
    }


def _charge(row: Charge) -> dict[str, Any]:
    return {
        "charge_id": row.charge_id,
        "lease_id": row.lease_id,
        "run_id": row.run_id,
        "kind": str(row.kind),
        "amount_nusd": row.amount_nusd,
        "start_ms": row.start_ms,
        "end_ms": row.end_ms,
    }


def _budget(row: Budget) -> dict[str, Any]:
    return {"scope": str(row.scope), "key": row.key, "limit_nusd": row.limit_nusd}


def _machine(row: Machine) -> dict[str, Any]:
    return {"marketplace": row.marketplace, "machine_id": row.machine_id}


def _storable(columns: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    """Columns with text that both databases take."""

    def values(row: Any) -> dict[str, Any]:
        return {name: storable_text(value) if isinstance(value, str) else value for name, value in columns(row).items()}

    return values


# table name → (table, record type, the columns taken from a record)
PROJECTIONS: dict[str, tuple[sa.Table, type[Any], Callable[[Any], dict[str, Any]]]] = {
    "leases": (leases, Lease, _storable(_lease)),
    "runs": (runs, CellRun, _storable(_run)),
    "charges": (charges, Charge, _storable(_charge)),
    "budgets": (budgets, Budget, _storable(_budget)),
    "machines": (machines, Machine, _storable(_machine)),
}
