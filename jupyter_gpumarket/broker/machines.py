"""Our own record of machines, kept beside the journal: made anew only when something was judged or compared."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import msgspec

from jupyter_gpumarket.api import OwnRecord, Reconciliation
from jupyter_gpumarket.broker.closing import RECONCILED
from jupyter_gpumarket.journal import Journal
from jupyter_gpumarket.offers import own_records

JUDGED = "machine.judged"


class MachineMemory:
    """What the journal tells of machines, by (marketplace, machine)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._seen = -1
        self._bills: dict[str, Reconciliation] = {}
        self._records: Mapping[tuple[str, str], OwnRecord] = {}

    def records(self) -> Mapping[tuple[str, str], OwnRecord]:
        """The records as of now."""
        last = self._journal.last_seq()
        if last == self._seen:
            return self._records
        news = self._journal.entries(after=max(0, self._seen), kinds={JUDGED, RECONCILED})
        for line in news:
            if line.kind == RECONCILED:
                # What an older version wrote may lack fields; then that bill is not counted.
                with contextlib.suppress(msgspec.ValidationError):
                    self._bills[line.subject] = msgspec.convert(line.body, Reconciliation)
        if news or self._seen < 0:
            self._records = own_records(self._journal.machines(), self._journal.leases(), self._bills)
        self._seen = last
        return self._records
