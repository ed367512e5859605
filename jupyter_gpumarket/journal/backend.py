"""The two databases behind the journal: how each is opened, locked, and how durable a commit is made.

SQLite: WAL with synchronous=FULL, so that a commit that returned survives a power cut; a lock file beside it names its
holder. PostgreSQL: its own durability; a session advisory lock on the one connection that is used.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jupyter_gpumarket.errors import ConfigError, JournalError, JournalLocked
from jupyter_gpumarket.journal import failures
from jupyter_gpumarket.journal.guard import Guard

BUSY_MS = 2_000
# Any program that opens a SQLite journal can tell it from other databases ("GPUm").
APPLICATION_ID = 0x4750556D
POSTGRES_LOCK = 0x4750556D4A524E4C


class SqliteBackend:
    """One file. `file` is None for a journal in memory, which is for tests of other parts."""

    def __init__(self, url: sa.URL) -> None:
        name = url.database
        self.file = Path(name).expanduser().resolve() if name and name != ":memory:" else None
        self.where = str(self.file or "in memory")
        self.writes = False
        self._lock: int | None = None
        self.guard: Guard | None = None
        if self.file is not None:
            self._make_place(self.file)
            self._take_lock(self.file)
            self._make_private(self.file)
            self.guard = Guard(self.file)
        self.engine = sa.create_engine(
            url.set(database=str(self.file)) if self.file else url,
            poolclass=sa.pool.StaticPool,
            connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_MS / 1000},
        )
        sa.event.listen(self.engine, "connect", self._set_up)
        sa.event.listen(self.engine, "begin", self._begin)

    @staticmethod
    def _make_place(file: Path) -> None:
        """A folder that is there already is the user's own: its rights are left alone."""
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise JournalError(f"the folder of the journal {file} cannot be made: {error.strerror}") from None

    @staticmethod
    def _make_private(file: Path) -> None:
        """Only this user may read it, whatever the folder allows; SQLite gives its other files the same rights."""
        try:
            os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
            if file.stat().st_uid == os.getuid():
                file.chmod(0o600)
        except OSError:
            # Opening it says better what is wrong.
            return

    def _take_lock(self, file: Path) -> None:
        path = file.with_name(file.name + ".lock")
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise JournalError(
                f"the journal {file} cannot be opened ({error.strerror}: {path}); make its folder writable for this "
                f"user, with some room on the disk"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise JournalLocked(
                    f"another broker writes the journal {file}: {holder or 'unknown process'}; use that one, or end it"
                ) from None
            raise JournalError(
                f"the folder of the journal {file} knows no file locks ({error.strerror}); put the journal on a local "
                f"disk, or use PostgreSQL"
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        except OSError:
            # A full disk: the lock holds all the same, only the holder's name is missing for others.
            pass
        self._lock = descriptor

    @staticmethod
    def _set_up(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        cursor.execute("PRAGMA journal_mode = WAL")
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA cell_size_check = ON")
        cursor.execute("PRAGMA trusted_schema = OFF")
        cursor.close()

    def _begin(self, connection: sa.Connection) -> None:
        # The write lock at once: upgrading a read transaction can fail half-way with "busy".
        connection.exec_driver_sql("BEGIN IMMEDIATE" if self.writes else "BEGIN")

    def check(self, connection: sa.Connection) -> None:
        """Refuse a file that is damaged, before it is written to.

        Raises:
            JournalCorrupt: SQLite finds its pages or records broken.
            JournalError: it is another program's database.
        """
        owner = connection.exec_driver_sql("PRAGMA application_id").scalar_one()
        if owner not in (0, APPLICATION_ID):
            raise JournalError(f"{self.where} is the database of another program (application id {owner})")
        verdict = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        if verdict != "ok":
            raise failures.corrupt(self.where, str(verdict))
        if self._is_cut():
            raise failures.corrupt(self.where, "the file ends in the middle of a page")
        if owner == 0:
            connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")

    def _is_cut(self) -> bool:
        """Whether the file ends inside of a page, which SQLite reads as zeros; a log still to be applied may be why."""
        if self.file is None:
            return False
        log = self.file.with_name(self.file.name + "-wal")
        if log.exists() and log.stat().st_size:
            return False
        with self.file.open("rb") as file:
            page_bytes = int.from_bytes(file.read(18)[16:18], "big")
        return self.file.stat().st_size % (65536 if page_bytes == 1 else max(1, page_bytes)) != 0

    def check_deeply(self, connection: sa.Connection) -> None:
        """Read every page and compare every index with its table.

        Raises:
            JournalCorrupt: SQLite finds something broken.
        """
        verdict = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar_one()
        if verdict != "ok":
            raise failures.corrupt(self.where, str(verdict))

    def free_bytes(self) -> int | None:
        """Room on the disk."""
        try:
            return shutil.disk_usage(self.file.parent).free if self.file else None
        except OSError:
            return None

    def close(self) -> None:
        """Close the file and give the lock back."""
        self.engine.dispose()
        if self.guard is not None:
            self.guard.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class PostgresBackend:
    """One connection, which holds the lock; where it breaks, the next one takes the lock again or fails."""

    file = None
    guard: Guard | None = None

    def __init__(self, url: sa.URL) -> None:
        self.where = url.render_as_string(hide_password=True)
        self.writes = False
        self.engine = sa.create_engine(
            url,
            poolclass=sa.pool.StaticPool,
            connect_args={
                "application_name": f"jupyter_gpumarket broker, pid {os.getpid()} on {socket.gethostname()}"[:63],
                "connect_timeout": 10,
            },
        )
        sa.event.listen(self.engine, "connect", self._set_up)

    def _set_up(self, connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        # Durability is the journal's promise, whatever the server's default; and nobody waits for ever.
        cursor.execute("SET synchronous_commit = on")
        cursor.execute("SET lock_timeout = '5s'")
        cursor.execute("SET statement_timeout = '60s'")
        cursor.execute(f"SELECT pg_try_advisory_lock({POSTGRES_LOCK})")
        taken = cursor.fetchone()[0]
        holder = "" if taken else self._holder(cursor)
        cursor.close()
        connection.commit()
        if not taken:
            connection.close()
            raise JournalLocked(f"another broker writes the journal {self.where}: {holder}; use that one, or end it")

    @staticmethod
    def _holder(cursor: Any) -> str:
        cursor.execute(
            "SELECT a.application_name, a.client_addr::text, a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid) "
            "WHERE l.locktype = 'advisory' AND l.granted AND l.database = "
            "(SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        found = cursor.fetchone()
        if found is None:
            return "unknown process"
        return f"{found[0]} (from {found[1] or 'this machine'}, server process {found[2]})"

    def check(self, connection: sa.Connection) -> None:
        """PostgreSQL checks itself; only that it can be written."""
        if connection.exec_driver_sql("SHOW transaction_read_only").scalar_one() == "on":
            raise JournalError(f"the journal {self.where} is read-only; name the primary server")

    def check_deeply(self, connection: sa.Connection) -> None:
        """PostgreSQL checks its pages as it reads them."""

    def free_bytes(self) -> int | None:
        """Not known from here."""
        return None

    def close(self) -> None:
        """Close the connection, which gives the lock back."""
        self.engine.dispose()


Backend = SqliteBackend | PostgresBackend


def backend(url: str) -> Backend:
    """The database that a URL names.

    Raises:
        ConfigError: no URL, or neither SQLite nor PostgreSQL, or its driver is missing.
        JournalLocked: another broker has it.
    """
    try:
        parsed = sa.make_url(url)
        name = parsed.get_backend_name()
        if name == "sqlite":
            return SqliteBackend(parsed)
        if name == "postgresql":
            return PostgresBackend(parsed.set(drivername="postgresql+psycopg"))
    except sa.exc.ArgumentError:
        # The URL may hold a password, so it is not repeated.
        raise ConfigError("the setting `journal` is no database URL; write sqlite:////path or postgresql://…") from None
    except ImportError:
        raise ConfigError("a journal on PostgreSQL needs psycopg: pip install 'jupyter_gpumarket[postgres]'") from None
    raise ConfigError(f"the setting `journal` names {name}; SQLite and PostgreSQL are supported")
