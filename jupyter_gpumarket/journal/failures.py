"""What a database's error means for the journal, and what to do about it. Pure: errors in, errors out."""

from __future__ import annotations

import sqlite3

import sqlalchemy as sa

from jupyter_gpumarket.errors import JournalCorrupt, JournalError, JournalFull, JournalLocked

# What SQLite calls them; an extended code carries the plain one in its low byte.
_FULL, _BUSY, _LOCKED, _READONLY, _CANTOPEN, _PERM = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
)
_CORRUPT, _NOT_A_DATABASE, _IO = sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_IOERR

# A damaged schema or text: SQLite has no code of their own for these.
_SIGNS_OF_DAMAGE = ("no such table", "no such column", "has no column", "Could not decode", "malformed")

# An I/O error leaves room for doubt about what is on the disk; these do not: nothing of the entry is there.
NO_ROOM_BYTES = 64 * 1024


def meaning(error: sa.exc.SQLAlchemyError, where: str, free_bytes: int | None = None) -> JournalError:
    """The error to raise instead. `free_bytes` is the room left on the disk, where that is known."""
    original = getattr(error, "orig", None)
    if isinstance(original, sqlite3.Error):
        return _of_sqlite(original, where, free_bytes)
    state = getattr(original, "sqlstate", None)
    if original is not None:
        return _of_postgres(state, str(original).strip(), where)
    return JournalError(f"the journal {where} failed: {error}")


def _of_sqlite(error: sqlite3.Error, where: str, free_bytes: int | None) -> JournalError:
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    text = str(error)
    if code == _FULL or (code in (_IO, _CANTOPEN) and free_bytes is not None and free_bytes < NO_ROOM_BYTES):
        return full(where)
    if code in (_BUSY, _LOCKED):
        return JournalLocked(
            f"another program is writing in the journal {where}; end it (perhaps an open sqlite3 shell) and try again"
        )
    if code in (_READONLY, _CANTOPEN, _PERM):
        return JournalError(
            f"the journal {where} cannot be written ({error}); make the file and its folder writable for this user"
        )
    if code in (_CORRUPT, _NOT_A_DATABASE) or any(sign in text for sign in _SIGNS_OF_DAMAGE):
        return corrupt(where, text)
    if code == _IO:
        return JournalError(
            f"the disk under the journal {where} failed ({error}); what was acknowledged before is kept, the last "
            f"entry may or may not be. Nothing more is written until the broker is started again; check the disk first"
        )
    return JournalError(f"the journal {where} failed: {error}")


def _of_postgres(state: str | None, text: str, where: str) -> JournalError:
    if state == "53100":
        return full(where)
    if state in ("55P03", "40001", "40P01"):
        return JournalLocked(f"another program is writing in the journal {where}: {text}")
    if state in ("25006", "42501"):
        return JournalError(f"the journal {where} cannot be written ({text}); grant this user the right to write")
    if state in ("XX001", "XX002"):
        return corrupt(where, text)
    if state is None or state.startswith(("08", "57P")):
        return JournalError(
            f"the connection to the journal {where} failed ({text}). An entry that was being written may or may not be "
            f"there; the next call connects again and continues from what the database holds"
        )
    return JournalError(f"the journal {where} failed: {text}")


def full(where: str) -> JournalFull:
    """The disk is full."""
    return JournalFull(
        f"the disk under the journal {where} is full: nothing of this entry was written, everything before it is safe. "
        f"Make room on that disk; then it goes on by itself"
    )


def nearly_full(where: str) -> JournalFull:
    """The room that is left is needed for ending leases."""
    return JournalFull(
        f"the disk under the journal {where} is nearly full, and the room that is left is kept for ending leases: "
        f"nothing new is started. Make room on that disk; then it goes on by itself"
    )


def corrupt(where: str, what: str) -> JournalCorrupt:
    """The content does not add up."""
    return JournalCorrupt(
        f"the journal {where} is damaged: {what}. Nothing is rented until it is repaired: restore the last good copy; "
        f"rentals made since then are found by their labels"
    )


def is_doubtful(error: JournalError, original: sa.exc.SQLAlchemyError) -> bool:
    """Whether SQLite may hold more or less than it said, so that only opening it anew can tell."""
    code = getattr(getattr(original, "orig", None), "sqlite_errorcode", None)
    return code is not None and code & 0xFF == _IO and not isinstance(error, JournalFull)
