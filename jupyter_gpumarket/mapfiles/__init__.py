"""A map's files on the user's side: the items in one blob, and the outcomes, append-only.

The cluster process writes outcomes; doors read them, also while it writes and after it has ended.
"""

from __future__ import annotations

from jupyter_gpumarket.mapfiles.outcomes import OUTCOMES_NAME, Line, OutcomeLog, find_map, read_lines
from jupyter_gpumarket.mapfiles.packing import PackedItem, PackReader, pack

__all__ = ["OUTCOMES_NAME", "Line", "OutcomeLog", "PackReader", "PackedItem", "find_map", "pack", "read_lines"]
