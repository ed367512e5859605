"""What only PostgreSQL can do to a journal: cut its connection, and let another broker in."""

from __future__ import annotations

import psycopg
import pytest
import sqlalchemy as sa

from jupyter_gpumarket.errors import JournalError, JournalLocked
from jupyter_gpumarket.journal import Journal

from .records import SteppingClock, wished

pytestmark = pytest.mark.postgres


def cut(url: str) -> None:
    """End every other connection to the database, as a server restart does."""
    parsed = sa.make_url(url)
    with psycopg.connect(dbname=parsed.database, **parsed.query, autocommit=True) as connection:  # type: ignore[arg-type]
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def test_a_cut_connection_is_told_and_then_made_anew(postgres_url: str) -> None:
    """The first call fails and says that it is unknown; the next one connects, locks and goes on from the truth."""
    journal = Journal.open(postgres_url, SteppingClock())
    journal.append([wished(1)])
    cut(postgres_url)

    with pytest.raises(JournalError, match="may or may not"):
        journal.append([wished(2)])

    assert journal.append([wished(3)])[0].seq == 2
    journal.verify()
    journal.close()


def test_who_lost_the_lock_does_not_write_any_more(postgres_url: str) -> None:
    """Another broker took over while the connection was cut."""
    journal = Journal.open(postgres_url, SteppingClock())
    cut(postgres_url)
    heir = Journal.open(postgres_url, SteppingClock())
    heir.append([wished(1)])

    with pytest.raises(JournalError, match="may or may not"):
        journal.append([wished(2)])
    with pytest.raises(JournalLocked, match="another broker"):
        journal.append([wished(2)])

    assert heir.last_seq() == 1
    heir.close()
    assert journal.append([wished(2)])[0].seq == 2
    journal.close()
