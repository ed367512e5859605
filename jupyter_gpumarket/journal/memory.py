"""The rows that are asked for again and again, as they were read last.

The broker alone writes the journal, so what it has read stays true until it writes rows of the same kind itself. Rows
are frozen records, so they can be handed out as they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

MOST = 500


class Memory:
    """Answers by kind of row and question. Bounded: when it is full it begins anew."""

    def __init__(self) -> None:
        self._known: dict[type, dict[Hashable, list[Any]]] = {}

    def recall(self, kind: type, question: Hashable) -> list[Any] | None:
        """The former answer, if nothing has changed since."""
        return self._known.get(kind, {}).get(question)

    def keep(self, kind: type, question: Hashable, rows: list[Any]) -> None:
        """Remember an answer."""
        answers = self._known.setdefault(kind, {})
        if len(answers) >= MOST:
            answers.clear()
        answers[question] = rows

    def changed(self, rows: Iterable[Any]) -> None:
        """These rows were written, or taken away: what was known of their kind is not true any more."""
        for row in rows:
            self._known.pop(type(row), None)

    def forget(self) -> None:
        """Read everything anew."""
        self._known.clear()
