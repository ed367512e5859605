"""Journals of other versions: newer minors are read and written without loss, newer majors refused."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from jupyter_gpumarket.errors import JournalCorrupt, JournalTooNew
from jupyter_gpumarket.journal import Journal, NewEntry, schema
from jupyter_gpumarket.journal.entries import Stored, chained
from jupyter_gpumarket.models import LeaseState

from .records import SteppingClock, lease, wished


def change(file: Path, *statements: str) -> None:
    with sqlite3.connect(file, isolation_level=None) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.fixture
def journal_file(file: Path, url: str) -> Path:
    journal = Journal.open(url, SteppingClock())
    journal.append([wished(1)])
    journal.close()
    return file


def test_a_newer_major_is_refused_and_left_as_it_is(journal_file: Path, url: str) -> None:
    """The message names both versions and what to do; not a byte of the tables changes."""
    change(journal_file, "UPDATE journal_version SET major = 2, minor = 3, written_by = '4.0'")

    with pytest.raises(JournalTooNew) as refused:
        Journal.open(url, SteppingClock())

    assert "schema 2.3, written by jupyter_gpumarket 4.0" in str(refused.value)
    assert "pip install --upgrade jupyter_gpumarket" in str(refused.value)
    change(journal_file, "UPDATE journal_version SET major = 1, minor = 0")
    Journal.open(url, SteppingClock()).close()


def newer_minor(file: Path) -> None:
    change(
        file,
        "UPDATE journal_version SET minor = 7",
        "ALTER TABLE leases ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'",
        "CREATE TABLE novelties (id TEXT PRIMARY KEY)",
        "UPDATE leases SET data = json_set(data, '$.colour', 'blue'), mood = 'glad'",
    )


def test_fields_of_a_newer_minor_survive_our_writing(journal_file: Path, url: str) -> None:
    """An older program changes a lease, and what only the newer one knows of it stays."""
    newer_minor(journal_file)
    journal = Journal.open(url, SteppingClock())
    journal.append([NewEntry(kind="lease.failed", subject="lease-1", rows=(lease(1, LeaseState.FAILED),))])

    assert journal.lease("lease-1") == lease(1, LeaseState.FAILED)
    journal.verify()
    journal.rebuild()
    journal.close()
    with sqlite3.connect(journal_file) as connection:
        (colour,) = connection.execute("SELECT json_extract(data, '$.colour') FROM leases").fetchone()
        (entry,) = connection.execute("SELECT rows FROM entries ORDER BY seq DESC LIMIT 1").fetchone()
    connection.close()
    assert (colour, '"colour":"blue"' in entry) == ("blue", True)


def test_kinds_and_tables_of_a_newer_minor_are_passed_over(journal_file: Path, url: str) -> None:
    """Entries of unknown kinds are listed as they are; rows of unknown tables do not stop a replay."""
    journal = Journal.open(url, SteppingClock())
    journal.append([NewEntry(kind="dream.dreamt", subject="z", body={"of": ["electric sheep"]})])
    journal.close()
    newer_minor(journal_file)

    journal = Journal.open(url, SteppingClock())

    assert journal.entries(kinds={"dream.dreamt"})[0].body == {"of": ["electric sheep"]}
    assert journal.minor == 7
    journal.close()


def test_tables_without_a_version_are_refused(journal_file: Path, url: str) -> None:
    """Better than migrating what nobody knows."""
    change(journal_file, "DROP TABLE journal_version")

    with pytest.raises(JournalCorrupt, match="no version"):
        Journal.open(url, SteppingClock())


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(journal_file: Path, url: str) -> None:
    """Alembic finds no difference between the migrated journal and `schema`."""
    journal = Journal.open(url, SteppingClock())
    with journal._transaction(writes=False) as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "journal_revision"})
        assert compare_metadata(context, schema.metadata) == []
    journal.close()


def test_rows_of_a_newer_minor_s_tables_do_not_stop_a_replay(journal_file: Path, url: str) -> None:
    """An entry that changes a row of a table that only a newer version has."""
    with sqlite3.connect(journal_file) as newer:
        (last,) = newer.execute("SELECT hash FROM journal_head").fetchone()
        plain = Stored(
            seq=2,
            at_ms=5,
            kind="dream.dreamt",
            subject="z",
            body="{}",
            rows='[{"table":"novelties","row":{"id":"x"},"mood":"glad"}]',
            writer="1.7",
        )
        entry = msgspec.structs.replace(plain, hash=chained(last, plain))
        newer.execute("INSERT INTO entries VALUES (?,?,?,?,?,?,?,?)", msgspec.structs.astuple(entry))
        newer.execute("UPDATE journal_head SET seq = 2, hash = ?", (entry.hash,))
    newer.close()
    newer_minor(journal_file)

    journal = Journal.open(url, SteppingClock())

    journal.rebuild()
    journal.verify()
    assert [line.kind for line in journal.entries()] == ["lease.wished", "dream.dreamt"]
    journal.append([wished(2)])
    journal.close()


def test_a_journal_that_does_not_say_its_version_is_refused(journal_file: Path, url: str) -> None:
    """An empty version table is damage, not an old journal."""
    change(journal_file, "DELETE FROM journal_version")

    with pytest.raises(JournalCorrupt, match="does not say its version"):
        Journal.open(url, SteppingClock())
