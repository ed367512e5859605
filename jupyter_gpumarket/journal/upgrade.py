"""Brings a journal's schema to this version, or says why it cannot.

A schema has a major and a minor number. A newer minor only added things, so this program reads and writes it as it is.
A newer major means something else is stored, so it is refused before anything is touched.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

import jupyter_gpumarket
from jupyter_gpumarket.errors import JournalCorrupt, JournalTooNew
from jupyter_gpumarket.journal import schema
from jupyter_gpumarket.journal.entries import FIRST_HASH

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(connection: sa.Connection, where: str) -> int:
    """Bring the schema up to date inside the caller's transaction.

    Returns:
        The minor number of the schema that the journal has now; larger than `schema.MINOR` where a newer program
        has already been here.

    Raises:
        JournalTooNew: a newer major version wrote it.
        JournalCorrupt: the tables are there, and what says their version is not.
    """
    known = _version(connection, where)
    if known is not None and known.major > schema.MAJOR:
        raise JournalTooNew(
            f"the journal {where} has schema {known.major}.{known.minor}, written by jupyter_gpumarket "
            f"{known.written_by}; this is {jupyter_gpumarket.__version__}, which knows schema {schema.MAJOR}. Nothing "
            f"was changed. Update it with `pip install --upgrade jupyter_gpumarket`, or name another journal."
        )
    if known is not None and (known.major, known.minor) >= (schema.MAJOR, schema.MINOR):
        return int(known.minor)
    _migrate(connection)
    if known is None:
        connection.execute(schema.head.insert().values(id=1, seq=0, hash=FIRST_HASH))
        connection.execute(schema.versions.insert().values(id=1, **_now()))
    else:
        connection.execute(schema.versions.update().values(**_now()))
    return schema.MINOR


def _migrate(connection: sa.Connection) -> None:
    # Imported only where there is something to migrate: it would be a third of the broker's start-up.
    from alembic import command
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    configuration.set_main_option("path_separator", "newline")
    configuration.attributes["connection"] = connection
    command.upgrade(configuration, "head")


def _now() -> dict[str, object]:
    return {"major": schema.MAJOR, "minor": schema.MINOR, "written_by": jupyter_gpumarket.__version__}


def _version(connection: sa.Connection, where: str) -> sa.Row[tuple[int, int, int, str]] | None:
    tables = set(sa.inspect(connection).get_table_names())
    if "journal_version" not in tables:
        if tables & {"entries", "journal_head"}:
            raise JournalCorrupt(f"the journal {where} has entries but no version; restore it from a copy")
        return None
    found = connection.execute(sa.select(schema.versions)).first()
    if found is None:
        raise JournalCorrupt(f"the journal {where} does not say its version; restore it from a copy")
    return found
