"""What is written: entries, the rows they carry, their text form, and the hash chain over them. Pure.

The hash of an entry covers the hash before it, so that a changed, deleted or swapped entry breaks the chain at that
place. It is taken over the stored text itself: reading never depends on how a later version would write the same thing.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from jupyter_gpumarket.models import Budget, CellRun, Charge, Lease, Machine, Record

Row = Lease | CellRun | Charge | Budget | Machine

TABLE_OF: dict[type[Record], str] = {
    Lease: "leases",
    CellRun: "runs",
    Charge: "charges",
    Budget: "budgets",
    Machine: "machines",
}

FIRST_HASH = "0" * 64


class NewEntry(Record, frozen=True, kw_only=True):
    """A wish or a fact to be appended.

    Attributes:
        kind: `lease.<event>`, `run.<event>`, `budget.set`, `charge.final`, `machine.judged`, `reconciled`,
            `orphan.<event>`; others are kept as they are.
        subject: the id of what it is about: a lease, a run, a budget's scope and key.
        body: anything that JSON can hold. Never a secret.
        rows: the new content of each row this entry changes; a row replaces the one with the same primary key.
        gone: rows that are taken away, such as a lifted budget; only their primary key counts.
    """

    kind: str
    subject: str
    body: dict[str, Any] = {}
    rows: tuple[Row, ...] = ()
    gone: tuple[Row, ...] = ()


class Stored(Record, frozen=True, kw_only=True):
    """An entry as it lies in the table `entries`."""

    seq: int
    at_ms: int
    kind: str
    subject: str
    body: str
    rows: str
    writer: str
    hash: str = ""


class StoredRow(Record, frozen=True, kw_only=True):
    """One row inside an entry's `rows` text: its table, its JSON as the table holds it, whether it is taken away."""

    table: str
    row: msgspec.Raw
    gone: bool = False


def as_text(value: Any) -> str:
    """JSON with sorted keys. What UTF-8 cannot hold (lone surrogates) is replaced, so that no text stops an append."""
    try:
        return msgspec.json.encode(value, order="deterministic").decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_storable(msgspec.to_builtins(value)), order="deterministic").decode()


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {storable_text(str(key)): _storable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return value


def storable_text(text: str) -> str:
    """Text that both databases take in a column: no NUL, no lone surrogate."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def with_unknown_fields(text: str, before: str, kind: type[Record]) -> str:
    """A row's new JSON, with the fields of the row before it that only a newer version knows."""
    unknown = {name: value for name, value in msgspec.json.decode(before).items() if name not in kind.__struct_fields__}
    return as_text(unknown | msgspec.json.decode(text)) if unknown else text


def rows_text(rows: list[tuple[Row, str]], gone: tuple[Row, ...]) -> str:
    """The `rows` column of an entry: rows with their JSON, and rows taken away."""
    stored = [StoredRow(table=TABLE_OF[type(row)], row=msgspec.Raw(text.encode())) for row, text in rows]
    stored += [StoredRow(table=TABLE_OF[type(r)], row=msgspec.Raw(as_text(r).encode()), gone=True) for r in gone]
    return msgspec.json.encode(stored).decode()


_ROWS = msgspec.json.Decoder(list[StoredRow])


def stored_rows(text: str) -> list[StoredRow]:
    """The rows of an entry.

    Raises:
        msgspec.DecodeError: it is not what `rows_text` wrote.
    """
    return _ROWS.decode(text)


def chained(previous: str, entry: Stored) -> str:
    """The hash of an entry that follows one with the hash `previous`."""
    content = [
        previous,
        entry.seq,
        entry.at_ms,
        entry.kind,
        entry.subject,
        entry.body,
        entry.rows,
        entry.writer,
    ]
    return hashlib.sha256(msgspec.json.encode(content)).hexdigest()
