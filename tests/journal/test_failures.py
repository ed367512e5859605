"""What each database error means: the kind of error, and words that say what to do."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy as sa

from jupyter_gpumarket.errors import ConfigError, JournalCorrupt, JournalError, JournalFull, JournalLocked
from jupyter_gpumarket.journal import Journal
from jupyter_gpumarket.journal.failures import is_doubtful, meaning

from .records import SteppingClock


def of_sqlite(code: int, text: str = "it broke") -> sa.exc.DBAPIError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return sa.exc.OperationalError("INSERT", {}, error)


class PostgresSays(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        super().__init__("it broke")
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("code", "free", "kind", "words"),
    [
        (sqlite3.SQLITE_FULL, None, JournalFull, "Make room"),
        (sqlite3.SQLITE_IOERR_WRITE, 0, JournalFull, "Make room"),
        (sqlite3.SQLITE_IOERR_SHMSIZE, 100, JournalFull, "Make room"),
        (sqlite3.SQLITE_IOERR_FSYNC, 10**9, JournalError, "may or may not"),
        (sqlite3.SQLITE_BUSY, None, JournalLocked, "another program"),
        (sqlite3.SQLITE_LOCKED, None, JournalLocked, "another program"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, None, JournalError, "writable"),
        (sqlite3.SQLITE_CANTOPEN, 10**9, JournalError, "writable"),
        (sqlite3.SQLITE_CORRUPT, None, JournalCorrupt, "restore the last good copy"),
        (sqlite3.SQLITE_NOTADB, None, JournalCorrupt, "restore the last good copy"),
        (sqlite3.SQLITE_ERROR, None, JournalError, "it broke"),
    ],
)
def test_each_sqlite_error_has_its_meaning(code: int, free: int | None, kind: type[JournalError], words: str) -> None:
    """Full, locked, read-only, damaged and failing disks are told apart."""
    told = meaning(of_sqlite(code), "/x/journal.sqlite", free)

    assert type(told) is kind
    assert words in str(told)
    assert "/x/journal.sqlite" in str(told)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53100", JournalFull),
        ("55P03", JournalLocked),
        ("25006", JournalError),
        ("XX001", JournalCorrupt),
        ("57P01", JournalError),
        (None, JournalError),
        ("42601", JournalError),
    ],
)
def test_each_postgres_error_has_its_meaning(state: str | None, kind: type[JournalError]) -> None:
    """By SQLSTATE; what has none is a broken connection."""
    told = meaning(sa.exc.OperationalError("INSERT", {}, PostgresSays(state)), "postgresql://db")

    assert type(told) is kind


def test_only_a_failed_disk_ends_the_journal() -> None:
    """After a failed fsync nobody knows what is on the disk; after a full one it is known: nothing."""
    failed, full = of_sqlite(sqlite3.SQLITE_IOERR_FSYNC), of_sqlite(sqlite3.SQLITE_FULL)

    assert is_doubtful(meaning(failed, "j", 10**9), failed)
    assert not is_doubtful(meaning(full, "j"), full)


@pytest.mark.parametrize(
    ("url", "words"),
    [("mysql://u:secret@h/db", "SQLite and PostgreSQL"), ("secret nonsense", "no database URL"), ("", "no database")],
)
def test_a_url_of_no_supported_database_is_refused_without_repeating_it(url: str, words: str) -> None:
    """It may hold a password."""
    with pytest.raises(ConfigError, match=words) as refused:
        Journal.open(url, SteppingClock())

    assert "secret" not in str(refused.value)


def test_a_password_is_not_in_the_message_of_a_server_that_does_not_answer() -> None:
    """Connection errors name the server, never its password."""
    with pytest.raises(JournalError) as refused:
        Journal.open("postgresql://anna:hunter2@127.0.0.1:1/db", SteppingClock())

    assert "hunter2" not in str(refused.value)
    assert "127.0.0.1" in str(refused.value)
