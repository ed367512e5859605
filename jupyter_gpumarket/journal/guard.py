"""Two small files beside a SQLite journal that make it tell the truth when the disk does not.

`<journal>.anchor` holds the number and hash of the last acknowledged entry. SQLite drops what it cannot check at the
end of its write-ahead log, and a restored old copy looks perfect in itself; either would silently forget rentals that
cost money. The anchor is written after each commit without waiting for the disk: it may lag behind after a power cut,
it never runs ahead of the journal.

`<journal>.reserve` is room set aside. When the disk is full it is given up, so that what ends spending can still be
recorded; it comes back when there is room again.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from jupyter_gpumarket.errors import JournalCorrupt
from jupyter_gpumarket.journal.entries import NewEntry
from jupyter_gpumarket.models import Budget, CellRun, Lease, LeaseState, RunStatus

RESERVE_BYTES = 4 * 1024 * 1024
_ANCHOR = re.compile(rb"(\d{20}) ([0-9a-f]{64})\n")
_SPENDING_STATES = frozenset({LeaseState.WISHED, LeaseState.QUOTING, LeaseState.RENTING})


class Guard:
    """Anchor and reserve of one journal file. Neither ever stops the journal by failing itself."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._anchor_path = file.with_name(file.name + ".anchor")
        self._reserve_path = file.with_name(file.name + ".reserve")
        self._anchor: int | None = None
        self.tight = False

    def check(self, head: tuple[int, str], hash_of: Callable[[int], str | None]) -> None:
        """Compare the journal with the anchor.

        Raises:
            JournalCorrupt: entries that were acknowledged are not there, or are others.
        """
        anchor = self._read_anchor()
        if anchor is None:
            return
        seq, told = anchor
        if seq > head[0]:
            raise JournalCorrupt(
                f"the journal {self._file} ends at entry {head[0]}, and entry {seq} was acknowledged before: its end "
                f"is lost, or it is an older copy. {self._advice}"
            )
        if seq and hash_of(seq) != told:
            raise JournalCorrupt(
                f"the journal {self._file} holds another entry {seq} than was acknowledged. {self._advice}"
            )

    @property
    def _advice(self) -> str:
        return (
            f"Restore the newest copy. Rentals that it does not know are found by their labels; if this is the newest, "
            f"delete {self._anchor_path} and start again"
        )

    def _read_anchor(self) -> tuple[int, str] | None:
        try:
            found = _ANCHOR.fullmatch(self._anchor_path.read_bytes())
        except OSError:
            return None
        return (int(found[1]), found[2].decode()) if found else None

    def note(self, head: tuple[int, str]) -> None:
        """Remember the end of the journal, after it was committed."""
        with contextlib.suppress(OSError):
            if self._anchor is None:
                flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
                self._anchor = os.open(self._anchor_path, flags, 0o600)
            os.pwrite(self._anchor, f"{head[0]:020d} {head[1]}\n".encode(), 0)

    def set_aside(self) -> None:
        """Make the reserve where it is missing and there is plenty of room."""
        if self._reserve_path.exists():
            self.tight = False
            return
        self.tight = True
        with contextlib.suppress(OSError):
            if shutil.disk_usage(self._file.parent).free < 2 * RESERVE_BYTES:
                return
            descriptor = os.open(self._reserve_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                _allocate(descriptor, RESERVE_BYTES)
                self.tight = False
            except OSError:
                self._reserve_path.unlink()
            finally:
                os.close(descriptor)

    def give_up_reserve(self) -> bool:
        """Free the reserve's room. False: it was used already."""
        self.tight = True
        try:
            self._reserve_path.unlink()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close the anchor."""
        if self._anchor is not None:
            os.close(self._anchor)
            self._anchor = None


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.write(descriptor, bytes(size))


def starts_spending(entries: Iterable[NewEntry]) -> bool:
    """Whether entries are wishes that lead to new cost. Those must not use the reserve: it is there to end spending."""
    return any(_starts_spending(row) for entry in entries for row in entry.rows)


def _starts_spending(row: object) -> bool:
    if isinstance(row, Lease):
        return row.state in _SPENDING_STATES
    return isinstance(row, Budget) or (isinstance(row, CellRun) and row.status is RunStatus.QUEUED)
