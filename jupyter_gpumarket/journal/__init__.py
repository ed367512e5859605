"""The journal: every wish and every observed fact, append-only, and the current rows they add up to.

Only the broker writes it, one broker at a time. An entry carries the rows it changes, so the current rows
("projections") can be computed again from the entries alone. See `docs/journal.md`.
"""

from __future__ import annotations

from jupyter_gpumarket.journal.entries import NewEntry, Row
from jupyter_gpumarket.journal.store import Journal

__all__ = ["Journal", "NewEntry", "Row"]
