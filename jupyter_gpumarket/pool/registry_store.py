"""The registry's memory: one SQLite file, durable at every commit.

SQLite (write-ahead log, full sync) rather than a file rewritten as a whole: several rows change together; unique
indexes hold the two promises that matter even against our own mistakes (one rental per label, one live rental per
offer); and kill -9 at any point leaves the state before or after a change, never between.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from jupyter_gpumarket.api.pool import HostOffer, Quota
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.models import Record

Row = TypeVar("Row")
SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE users (user TEXT PRIMARY KEY, token_digest TEXT NOT NULL UNIQUE, granted TEXT NOT NULL,
    chosen TEXT NOT NULL);
CREATE TABLE hosts (host_id TEXT PRIMARY KEY, token_digest TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE quotes (quote_id TEXT PRIMARY KEY, user TEXT NOT NULL, offer_id TEXT NOT NULL, host_id TEXT NOT NULL,
    price_nusd_hour INTEGER NOT NULL, expires_ms INTEGER NOT NULL);
CREATE TABLE rentals (rental_id TEXT PRIMARY KEY, user TEXT NOT NULL, label TEXT NOT NULL, host_id TEXT NOT NULL,
    offer_id TEXT NOT NULL, status TEXT NOT NULL, body TEXT NOT NULL, UNIQUE (user, label));
CREATE UNIQUE INDEX one_live_rental_per_offer ON rentals (offer_id) WHERE status <> 'gone';
CREATE INDEX live_rentals_of_host ON rentals (host_id) WHERE status <> 'gone';
"""


class HostRow(Record, frozen=True, kw_only=True):
    """A machine that joined, and what it said of itself last. `present` is False once it is lost or has left,
    `leaves_ms` when it will leave."""

    host_id: str
    name: str
    host: str
    port: int
    ssh_host_key: str
    offers: tuple[HostOffer, ...]
    region: str = ""
    country: str = ""
    boot_id: str = ""
    sequence: int = -1
    last_heard_ms: int = 0
    present: bool = False
    leaves_ms: int | None = None


class RentalRow(Record, frozen=True, kw_only=True):
    """A rental. `serving_until_ms` is when its host last said that it serves it, `boot_id` in which life."""

    rental_id: str
    user: str
    label: str
    host_id: str
    offer_id: str
    status: str
    price_nusd_hour: int
    ssh_public_key: str
    created_ms: int
    deadline_ms: int | None = None
    served_ms: int | None = None
    serving_until_ms: int | None = None
    ended_ms: int | None = None
    boot_id: str = ""
    detail: str = ""


class QuoteRow(Record, frozen=True, kw_only=True):
    """A price that was promised."""

    quote_id: str
    user: str
    offer_id: str
    host_id: str
    price_nusd_hour: int
    expires_ms: int


class UserRow(Record, frozen=True, kw_only=True):
    """Somebody who may rent."""

    user: str
    token_digest: str
    granted: Quota = Quota()
    chosen: Quota = Quota()


class RegistryStore:
    """Rows in, rows out; every call is its own transaction unless inside `transaction()`."""

    def __init__(self, file: Path) -> None:
        self._db = sqlite3.connect(file, isolation_level=None, timeout=10.0)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        file.chmod(0o600)
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            self._db.close()
            raise ConfigError(f"{file} was written by a newer version of this package; update it on this machine")
        if version == 0:
            self._db.executescript(f"BEGIN IMMEDIATE;{SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is written inside."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # users

    def user_of(self, token_digest: str) -> UserRow | None:
        return first(self._users("WHERE token_digest = ?", token_digest))

    def user(self, user: str) -> UserRow | None:
        return first(self._users("WHERE user = ?", user))

    def put_user(self, row: UserRow) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO users VALUES (?, ?, ?, ?)",
            (row.user, row.token_digest, text_of(row.granted), text_of(row.chosen)),
        )

    def _users(self, where: str, *values: Any) -> list[UserRow]:
        rows = self._db.execute(f"SELECT user, token_digest, granted, chosen FROM users {where}", values)  # noqa: S608
        return [
            UserRow(user=r[0], token_digest=r[1], granted=read(r[2], Quota), chosen=read(r[3], Quota)) for r in rows
        ]

    # hosts

    def host(self, host_id: str) -> HostRow | None:
        return first(self._bodies("SELECT body FROM hosts WHERE host_id = ?", HostRow, host_id))

    def hosts(self) -> list[HostRow]:
        return self._bodies("SELECT body FROM hosts ORDER BY host_id", HostRow)

    def host_token_digest(self, host_id: str) -> str | None:
        row = self._db.execute("SELECT token_digest FROM hosts WHERE host_id = ?", (host_id,)).fetchone()
        return None if row is None else str(row[0])

    def put_host(self, row: HostRow, token_digest: str | None = None) -> None:
        if token_digest is None:
            self._db.execute("UPDATE hosts SET body = ? WHERE host_id = ?", (text_of(row), row.host_id))
        else:
            self._db.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?, ?)", (row.host_id, token_digest, text_of(row)))

    # quotes

    def quote(self, quote_id: str) -> QuoteRow | None:
        row = self._db.execute("SELECT * FROM quotes WHERE quote_id = ?", (quote_id,)).fetchone()
        return None if row is None else QuoteRow(**dict(zip(QuoteRow.__struct_fields__, row, strict=True)))

    def put_quote(self, row: QuoteRow, *, forget_before_ms: int) -> None:
        self._db.execute("DELETE FROM quotes WHERE expires_ms < ?", (forget_before_ms,))
        self._db.execute(
            "INSERT INTO quotes VALUES (?, ?, ?, ?, ?, ?)",
            (row.quote_id, row.user, row.offer_id, row.host_id, row.price_nusd_hour, row.expires_ms),
        )

    # rentals

    def rental(self, rental_id: str) -> RentalRow | None:
        return first(self._bodies("SELECT body FROM rentals WHERE rental_id = ?", RentalRow, rental_id))

    def rental_with(self, user: str, label: str) -> RentalRow | None:
        return first(self._bodies("SELECT body FROM rentals WHERE user = ? AND label = ?", RentalRow, user, label))

    def rentals_of(self, user: str) -> list[RentalRow]:
        """All live rentals of a user."""
        return self._bodies("SELECT body FROM rentals WHERE user = ? AND status <> 'gone'", RentalRow, user)

    def live_rentals(self, host_id: str | None = None) -> list[RentalRow]:
        if host_id is None:
            return self._bodies("SELECT body FROM rentals WHERE status <> 'gone'", RentalRow)
        return self._bodies("SELECT body FROM rentals WHERE host_id = ? AND status <> 'gone'", RentalRow, host_id)

    def put_rental(self, row: RentalRow) -> None:
        self._db.execute(
            "INSERT INTO rentals VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (rental_id) DO UPDATE SET status = excluded.status, body = excluded.body",
            (row.rental_id, row.user, row.label, row.host_id, row.offer_id, row.status, text_of(row)),
        )

    def close(self) -> None:
        self._db.close()

    def _bodies(self, query: str, kind: type[Row], *values: Any) -> list[Row]:
        return [read(row[0], kind) for row in self._db.execute(query, values)]


def first(rows: list[Row]) -> Row | None:
    return rows[0] if rows else None


def text_of(record: Any) -> str:
    return msgspec.json.encode(record).decode()


def read(text: str, kind: type[Row]) -> Row:
    return msgspec.json.decode(text, type=kind)
