"""Entries read again from the first to the last: the chain checked, the rows folded, both compared with the tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec
import sqlalchemy as sa

from jupyter_gpumarket.journal import failures, schema
from jupyter_gpumarket.journal.entries import FIRST_HASH, Row, Stored, chained, stored_rows

BATCH = 1_000


def replay(connection: sa.Connection, where: str) -> list[tuple[Row, str]]:
    """Check the whole chain and fold the rows that entries carry; the last content of each row is kept.

    Rows of tables that a newer version added are passed over.

    Raises:
        JournalCorrupt: the entry at which the chain breaks, or that cannot be read.
    """
    rows: dict[tuple[Any, ...], tuple[Row, str]] = {}
    for entry in _checked(connection, where):
        try:
            for stored in stored_rows(entry.rows):
                if stored.table not in schema.PROJECTIONS:
                    continue
                table, kind, columns = schema.PROJECTIONS[stored.table]
                row = msgspec.json.decode(stored.row, type=kind)
                values = columns(row)
                key = (stored.table, *_key(table, values))
                rows.pop(key, None)
                if not stored.gone:
                    rows[key] = (row, bytes(stored.row).decode())
        except msgspec.DecodeError as error:
            raise failures.corrupt(where, f"the rows of entry {entry.seq} cannot be read ({error})") from None
    return list(rows.values())


def first_difference(connection: sa.Connection, rows: list[tuple[Row, str]]) -> str | None:
    """The first row of the tables that is not what the entries say, in words; None when all agree."""
    expected: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {name: {} for name in schema.PROJECTIONS}
    for row, _ in rows:
        name, table, columns = _PLACE[type(row)]
        values = columns(row)
        expected[name][_key(table, values)] = {**values, "data": row}
    for name, (table, kind, _) in schema.PROJECTIONS.items():
        held = _held(connection, table, kind)
        for key in sorted(set(expected[name]) | set(held), key=str):
            if expected[name].get(key) != held.get(key):
                return f"the row {', '.join(map(str, key))} of {name} is not what the entries say"
    return None


_PLACE = {kind: (name, table, columns) for name, (table, kind, columns) in schema.PROJECTIONS.items()}


def _key(table: sa.Table, values: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(values[column.name] for column in table.primary_key)


def _held(connection: sa.Connection, table: sa.Table, kind: type[Any]) -> dict[tuple[Any, ...], dict[str, Any]]:
    held = {}
    for found in connection.execute(sa.select(table)).mappings():
        row = {str(name): value for name, value in found.items()}
        # What cannot be read is certainly not what the entries say; the text itself then stands for the record.
        with contextlib.suppress(msgspec.DecodeError):
            row["data"] = msgspec.json.decode(row["data"], type=kind)
        held[_key(table, row)] = row
    return held


def check_chain(connection: sa.Connection, where: str, *, after: int = 0) -> None:
    """Check the entries after a number, up to the end.

    Raises:
        JournalCorrupt: the entry at which the chain breaks.
    """
    for _ in _checked(connection, where, after):
        pass


def hash_of(connection: sa.Connection, seq: int) -> str | None:
    """The hash of one entry."""
    return connection.execute(sa.select(schema.entries.c.hash).where(schema.entries.c.seq == seq)).scalar()


def _checked(connection: sa.Connection, where: str, after: int = 0) -> Iterator[Stored]:
    seq = after
    previous = FIRST_HASH if after == 0 else hash_of(connection, after)
    if previous is None:
        raise failures.corrupt(where, f"entry {after} is missing")
    while True:
        query = sa.select(schema.entries).where(schema.entries.c.seq > seq).order_by(schema.entries.c.seq).limit(BATCH)
        found = connection.execute(query).mappings().all()
        for row in found:
            entry = _entry(where, row)
            if entry.seq != seq + 1:
                raise failures.corrupt(where, f"entry {seq + 1} is missing")
            if chained(previous, entry) != entry.hash:
                raise failures.corrupt(where, f"entry {entry.seq} was changed after it was written")
            previous, seq = entry.hash, entry.seq
            yield entry
        if len(found) < BATCH:
            break
    _check_end(connection, where, seq, previous)


def _entry(where: str, row: sa.RowMapping) -> Stored:
    try:
        return msgspec.convert({str(name): value for name, value in row.items()}, Stored)
    except msgspec.ValidationError as error:
        raise failures.corrupt(where, f"an entry cannot be read ({error})") from None


def _check_end(connection: sa.Connection, where: str, seq: int, last: str) -> None:
    head = connection.execute(sa.select(schema.head.c.seq, schema.head.c.hash)).first()
    if head is None or head.seq > seq:
        missing = "the entry at the end" if head is None else f"the entries {seq + 1} to {head.seq}"
        raise failures.corrupt(where, f"{missing} cannot be found")
    if head.seq != seq or head.hash != last:
        raise failures.corrupt(where, f"entry {seq} was not written by a broker")
