"""The journal itself: append, read, verify, rebuild. Called by the broker alone, on its one loop; calls are short.

Promises:
- What `append` returned is on the disk, whole, with the rows it changed. What it raised for is not there at all
  (except where the message says that it is unknown).
- The rows always equal the entries replayed; `verify` proves it and `rebuild` makes it so again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

import jupyter_gpumarket
from jupyter_gpumarket.api import JournalLine
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.errors import JournalError, JournalFull, JournalLocked
from jupyter_gpumarket.journal import failures, schema
from jupyter_gpumarket.journal.backend import Backend, backend
from jupyter_gpumarket.journal.entries import (
    FIRST_HASH,
    TABLE_OF,
    NewEntry,
    Row,
    Stored,
    as_text,
    chained,
    rows_text,
    storable_text,
    with_unknown_fields,
)
from jupyter_gpumarket.journal.guard import starts_spending
from jupyter_gpumarket.journal.memory import Memory, run_order
from jupyter_gpumarket.journal.replay import check_chain, first_difference, hash_of, replay
from jupyter_gpumarket.journal.upgrade import upgrade
from jupyter_gpumarket.models import Budget, CellRun, Charge, Lease, Machine

RowT = TypeVar("RowT", Lease, CellRun, Charge, Budget, Machine)


log = logging.getLogger(__name__)

# So many of the newest entries are checked whenever the journal is opened: a fifth of a second.
CHECKED_AT_OPEN = 10_000


class Journal:
    """One open journal. Made by `Journal.open`; `close` gives its lock back."""

    def __init__(self, database: Backend, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._lock = threading.RLock()
        self._failed: str | None = None
        self._head: tuple[int, str] | None = None
        self._memory = Memory()
        self.minor = schema.MINOR
        self._upsert = sqlite.insert if database.engine.dialect.name == "sqlite" else postgresql.insert

    @classmethod
    def open(cls, url: str, clock: Clock) -> Journal:
        """Open the journal at a SQLAlchemy URL, make it where there is none, and bring its schema up to date.

        Raises:
            JournalLocked: another broker has it; names the holder.
            JournalTooNew: a newer major version wrote it.
            JournalCorrupt, JournalFull, JournalError: it cannot be read, or written.
            ConfigError: the URL names no database that is supported.
        """
        journal = cls(backend(url), clock)
        try:
            with journal._transaction(writes=False) as connection:
                journal._database.check(connection)
            with journal._transaction(writes=True) as connection:
                journal.minor = upgrade(connection, journal.where)
            journal._check()
        except BaseException:
            journal.close()
            raise
        return journal

    def _check(self) -> None:
        """What lies in the journal is what was acknowledged: all of a usual journal, the newest part of a huge one."""
        with self._transaction(writes=False) as connection:
            head = self._read_head(connection)
            guard = self._database.guard
            if guard is not None:
                guard.check(head, partial(hash_of, connection))
            if head[0] > CHECKED_AT_OPEN:
                check_chain(connection, self.where, after=head[0] - CHECKED_AT_OPEN)
                difference = None
            else:
                difference = first_difference(connection, replay(connection, self.where))
        if difference:
            # The entries are whole and they are the truth, so the rows can be made right without anybody's help.
            log.warning("the journal %s: %s; all rows are computed again from the entries", self.where, difference)
            self.rebuild()
        if guard is not None:
            guard.note(head)
            guard.set_aside()

    @property
    def tight(self) -> bool:
        """The disk is nearly full: the room kept for ending leases is used or could not be kept. Rent nothing new."""
        return self._database.guard is not None and self._database.guard.tight

    @property
    def where(self) -> str:
        """The file or the server, without any password."""
        return self._database.where

    # ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        """Write entries and the rows they change, all or none; durable on return.

        Raises:
            JournalFull: no room; nothing was written, and the next call tries anew.
            JournalLocked: another program is writing.
            JournalError: it cannot be written; the message says whether that is certain.
        """
        if not entries:
            return []
        guard = self._database.guard
        self._refuse_spending_when_tight(entries)
        try:
            stored = self._append(entries)
        except JournalFull:
            if guard is None or starts_spending(entries) or not guard.give_up_reserve():
                raise
            stored = self._append(entries)
        if guard is not None:
            guard.note(self._head or (0, FIRST_HASH))
            if guard.tight:
                guard.set_aside()
        return [_line(entry.seq, entry.at_ms, entry.kind, entry.subject, entry.body) for entry in stored]

    def _refuse_spending_when_tight(self, entries: Sequence[NewEntry]) -> None:
        guard = self._database.guard
        if guard is None or not guard.tight:
            return
        guard.set_aside()
        if guard.tight and starts_spending(entries):
            raise failures.nearly_full(self.where)

    def _append(self, entries: Sequence[NewEntry]) -> list[Stored]:
        with self._transaction(writes=True) as connection:
            old = self._head or self._read_head(connection)
            texts = [[(row, self._text(connection, row)) for row in entry.rows] for entry in entries]
            stored = self._stored(old, entries, texts)
            new = (stored[-1].seq, stored[-1].hash)
            moved = connection.execute(
                schema.head.update()
                .where(schema.head.c.id == 1, schema.head.c.seq == old[0], schema.head.c.hash == old[1])
                .values(seq=new[0], hash=new[1])
            )
            if moved.rowcount != 1:
                self._head = None
                raise JournalLocked(f"another program wrote in the journal {self.where}; start the broker again")
            connection.execute(schema.entries.insert(), [msgspec.to_builtins(entry) for entry in stored])
            for entry, rows in zip(entries, texts, strict=True):
                for row, text in rows:
                    self._put(connection, row, text)
                for row in entry.gone:
                    _take_away(connection, row)
        self._head = new
        with self._lock:
            # Runs are kept as they would be read: what cannot be stored is not in the text.
            self._memory.changed(
                msgspec.json.decode(text, type=CellRun) if isinstance(row, CellRun) else row
                for rows in texts
                for row, text in rows
            )
            self._memory.gone(row for entry in entries for row in entry.gone)
        return stored

    def _text(self, connection: sa.Connection, row: Row) -> str:
        text = as_text(row)
        if self.minor <= schema.MINOR:
            return text
        table, kind, columns = schema.PROJECTIONS[TABLE_OF[type(row)]]
        before = connection.execute(sa.select(table.c.data).where(*_same_key(table, columns(row)))).scalar()
        return with_unknown_fields(text, before, kind) if before else text

    def _stored(
        self, head: tuple[int, str], entries: Sequence[NewEntry], texts: Sequence[list[tuple[Row, str]]]
    ) -> list[Stored]:
        seq, previous = head
        at_ms = self._clock.now_ms()
        stored = []
        for entry, rows in zip(entries, texts, strict=True):
            seq += 1
            plain = Stored(
                seq=seq,
                at_ms=at_ms,
                kind=storable_text(entry.kind),
                subject=storable_text(entry.subject),
                body=as_text(entry.body),
                rows=rows_text(rows, entry.gone),
                writer=jupyter_gpumarket.__version__,
            )
            previous = chained(previous, plain)
            stored.append(msgspec.structs.replace(plain, hash=previous))
        return stored

    def _put(self, connection: sa.Connection, row: Row, text: str) -> None:
        table, _, columns = schema.PROJECTIONS[TABLE_OF[type(row)]]
        values = {**columns(row), "data": text}
        keys = [column.name for column in table.primary_key]
        statement = self._upsert(table).values(values)
        connection.execute(
            statement.on_conflict_do_update(
                index_elements=keys, set_={name: statement.excluded[name] for name in values if name not in keys}
            )
        )

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def entries(
        self,
        *,
        after: int = 0,
        subject: str | None = None,
        kinds: Collection[str] | None = None,
        limit: int | None = None,
    ) -> list[JournalLine]:
        """Entries after a sequence number, oldest first; of one subject, of some kinds, at most `limit`."""
        columns = schema.entries.c
        query = sa.select(columns.seq, columns.at_ms, columns.kind, columns.subject, columns.body)
        query = query.where(columns.seq > after).order_by(columns.seq)
        if subject is not None:
            query = query.where(columns.subject == subject)
        if kinds is not None:
            query = query.where(columns.kind.in_(list(kinds)))
        if limit is not None:
            query = query.limit(limit)
        with self._transaction(writes=False) as connection:
            return [_line(*row) for row in connection.execute(query)]

    def last_seq(self) -> int:
        """The number of the last entry; 0 when there is none."""
        with self._transaction(writes=False) as connection:
            return (self._head or self._read_head(connection))[0]

    def lease(self, lease_id: str) -> Lease | None:
        """One lease as it is now."""
        return self._one(Lease, schema.leases.c.lease_id, lease_id)

    def leases(self, *, open_only: bool = False) -> list[Lease]:
        """All leases, oldest first; `open_only`: those not released and not failed."""
        columns = schema.leases.c

        def read() -> list[Lease]:
            where = [columns.is_open == 1] if open_only else []
            return self._all(Lease, where, columns.created_ms, columns.lease_id)

        return self._remembered(Lease, ("open", open_only), read)

    def lease_by_request(self, request_id: str) -> Lease | None:
        """The lease that was made for a door's request."""
        return self._one(Lease, schema.leases.c.request_id, request_id)

    def run(self, run_id: str) -> CellRun | None:
        """One cell run as it is now."""
        return self._one(CellRun, schema.runs.c.run_id, run_id)

    def runs(self, *, lease_id: str | None = None, since_ms: int | None = None) -> list[CellRun]:
        """Cell runs, oldest first: of one lease; still going on at or after a time (not started counts as going on)."""
        columns = schema.runs.c
        where = []
        if lease_id is not None:
            where.append(columns.lease_id == lease_id)
        if since_ms is not None:
            where.append(sa.or_(columns.ended_ms.is_(None), columns.ended_ms >= since_ms))
            return sorted(self._all(CellRun, where), key=run_order)
        with self._lock:
            known = None if self._failed else self._memory.runs(lease_id)
            if known is None:
                known = self._memory.keep_runs(lease_id, self._all(CellRun, where))
            return list(known)

    def charges(self, *, since_ms: int = 0, until_ms: int | None = None, lease_id: str | None = None) -> list[Charge]:
        """Lines of the ledger that touch a span of time, oldest first."""
        columns = schema.charges.c
        where = [columns.end_ms >= since_ms]
        if until_ms is not None:
            where.append(columns.start_ms < until_ms)
        if lease_id is not None:
            where.append(columns.lease_id == lease_id)
        return self._all(Charge, where, columns.start_ms, columns.charge_id)

    def budgets(self) -> list[Budget]:
        """All budgets."""
        columns = schema.budgets.c
        return self._remembered(Budget, "all", lambda: self._all(Budget, [], columns.scope, columns.key))

    def machines(self) -> list[Machine]:
        """What is remembered of machines."""
        return self._all(Machine, [], schema.machines.c.marketplace, schema.machines.c.machine_id)

    def _one(self, kind: type[RowT], column: sa.Column[Any], value: str) -> RowT | None:
        found = self._remembered(kind, (column.name, value), lambda: self._all(kind, [column == value]))
        return found[0] if found else None

    def _remembered(self, kind: type[RowT], question: Hashable, read: Callable[[], list[RowT]]) -> list[RowT]:
        """The answer of last time, unless rows of this kind were written since."""
        with self._lock:
            known = None if self._failed else self._memory.recall(kind, question)
            if known is None:
                known = read()
                self._memory.keep(kind, question, known)
            return list(known)

    def _all(
        self, kind: type[RowT], where: Sequence[sa.ColumnElement[bool]], *order: sa.ColumnElement[Any]
    ) -> list[RowT]:
        table = schema.PROJECTIONS[TABLE_OF[kind]][0]
        query = sa.select(table.c.data).where(*where).order_by(*order)
        with self._transaction(writes=False) as connection:
            texts = connection.execute(query).scalars().all()
        try:
            return [msgspec.json.decode(text, type=kind) for text in texts]
        except msgspec.DecodeError as error:
            raise failures.corrupt(self.where, f"a row of {table.name} cannot be read ({error})") from None

    # ── upkeep ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def verify(self) -> None:
        """Prove that the chain is whole and that the rows equal the entries replayed.

        Raises:
            JournalCorrupt: names the first entry or row that does not fit.
        """
        with self._transaction(writes=False) as connection:
            self._database.check_deeply(connection)
            difference = first_difference(connection, replay(connection, self.where))
        if difference:
            raise failures.corrupt(self.where, difference)

    def rebuild(self) -> None:
        """Compute all rows again from the entries.

        Raises:
            JournalCorrupt: the entries themselves do not add up; nothing was changed.
        """
        with self._transaction(writes=True) as connection:
            rows = replay(connection, self.where)
            for table, _, _ in schema.PROJECTIONS.values():
                connection.execute(table.delete())
            for row, text in rows:
                self._put(connection, row, text)
        self._memory.forget()

    def close(self) -> None:
        """Close the database and give the lock back. Again: no effect."""
        with self._lock:
            self._failed = self._failed or "it is closed"
            self._database.close()

    def _read_head(self, connection: sa.Connection) -> tuple[int, str]:
        found = connection.execute(sa.select(schema.head.c.seq, schema.head.c.hash)).first()
        if found is None:
            raise failures.corrupt(self.where, "it does not know its last entry")
        self._head = (found.seq, found.hash)
        return self._head

    @contextmanager
    def _transaction(self, *, writes: bool) -> Iterator[sa.Connection]:
        """One transaction; database errors become the journal's own."""
        with self._lock:
            if self._failed:
                raise JournalError(f"the journal {self.where} is not open: {self._failed}")
            self._database.writes = writes
            try:
                with self._database.engine.begin() as connection:
                    yield connection
            except sa.exc.SQLAlchemyError as error:
                self._head = None
                self._memory.forget()
                told = failures.meaning(error, self.where, self._database.free_bytes())
                if failures.is_doubtful(told, error):
                    self._failed = str(told)
                raise told from None
            except (UnicodeDecodeError, msgspec.DecodeError) as error:
                # Damaged text makes even SQLite's own error messages unreadable.
                raise failures.corrupt(self.where, str(error)) from None


def _take_away(connection: sa.Connection, row: Row) -> None:
    table, _, columns = schema.PROJECTIONS[TABLE_OF[type(row)]]
    connection.execute(table.delete().where(*_same_key(table, columns(row))))


def _same_key(table: sa.Table, values: dict[str, Any]) -> list[sa.ColumnElement[bool]]:
    return [column == values[column.name] for column in table.primary_key]


def _line(seq: int, at_ms: int, kind: str, subject: str, body: str) -> JournalLine:
    return JournalLine(seq=seq, at_ms=at_ms, kind=kind, subject=subject, body=msgspec.json.decode(body))
