"""The rows that are asked for again and again, as they were read last.

The broker alone writes the journal, so what it has read stays true until it writes rows of the same kind itself. Rows
are frozen records, so they can be handed out as they are.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from typing import Any

from jupyter_gpumarket.models import CellRun

MOST = 500


def run_order(run: CellRun) -> tuple[bool, int, str]:
    """Oldest first, and before all others those that have not started."""
    return run.started_ms is not None, run.started_ms or 0, run.run_id


class Runs:
    """Cell runs in their order, changed one by one: a lease has many, and each cell writes of its own several times."""

    def __init__(self, rows: Iterable[CellRun]) -> None:
        self.rows = sorted(rows, key=run_order)
        self._by_id = {run.run_id: run for run in self.rows}

    def put(self, run: CellRun, *, belongs: bool) -> None:
        """This is what the run is now; whether it is one of these."""
        before = self._by_id.pop(run.run_id, None)
        if before is not None:
            del self.rows[bisect_left(self.rows, run_order(before), key=run_order)]
        if belongs:
            self._by_id[run.run_id] = run
            insort(self.rows, run, key=run_order)


class Memory:
    """Answers by kind of row and question. Bounded: when it is full it begins anew."""

    def __init__(self) -> None:
        self._known: dict[type, dict[Hashable, list[Any]]] = {}
        self._runs: dict[str | None, Runs] = {}

    def recall(self, kind: type, question: Hashable) -> list[Any] | None:
        """The former answer, if nothing has changed since."""
        return self._known.get(kind, {}).get(question)

    def keep(self, kind: type, question: Hashable, rows: list[Any]) -> None:
        """Remember an answer."""
        answers = self._known.setdefault(kind, {})
        if len(answers) >= MOST:
            answers.clear()
        answers[question] = rows

    def runs(self, lease_id: str | None) -> list[CellRun] | None:
        """The runs of a lease, or all, as they are now, if they were read before."""
        known = self._runs.get(lease_id)
        return known.rows if known is not None else None

    def keep_runs(self, lease_id: str | None, rows: Iterable[CellRun]) -> list[CellRun]:
        """Remember the runs of a lease, or all; they are returned in their order."""
        if len(self._runs) >= MOST:
            self._runs.clear()
        self._runs[lease_id] = Runs(rows)
        return self._runs[lease_id].rows

    def changed(self, rows: Iterable[Any]) -> None:
        """These rows were written as they are here: what was known of their kind is not true any more."""
        for row in rows:
            self._known.pop(type(row), None)
            if isinstance(row, CellRun):
                for lease_id, known in self._runs.items():
                    known.put(row, belongs=lease_id in (None, row.lease_id))

    def gone(self, rows: Iterable[Any]) -> None:
        """These rows were taken away."""
        for row in rows:
            self._known.pop(type(row), None)
            if isinstance(row, CellRun):
                self._runs.clear()

    def forget(self) -> None:
        """Read everything anew."""
        self._known.clear()
        self._runs.clear()
