"""What our adapter and a marketplace's own client send for the same intent, field by field, beside the docs' table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.simulator.web import Call, Reply, Server

DOCS = Path(__file__).parent.parent.parent / "docs" / "marketplaces"
HEADING = "## Where our requests differ from the official client's"
# A field of a call; the whole call where one side does not make it.
Difference = tuple[str, str, str]
WHOLE = "whole call"


class Recorder:
    """Gathers the calls that a stand-in answers."""

    def __init__(self, server: Server) -> None:
        self._calls: list[Call] = []
        server.observe = self._observe

    def take(self) -> list[Call]:
        """The calls since the last time."""
        calls, self._calls = self._calls, []
        return calls

    def _observe(self, call: Call, reply: Reply) -> None:
        if reply.status != 307:
            self._calls.append(call)


def differences(intent: str, ours: Iterable[Call], theirs: Iterable[Call], names: Mapping[str, str]) -> set[Difference]:
    """What one side sends and the other does not, or otherwise. `names` says what stands for what (ids, labels)."""
    a, b = told(ours, names), told(theirs, names)
    found: set[Difference] = set()
    for call in a.keys() | b.keys():
        if call not in a or call not in b:
            found.add((intent, call, WHOLE))
            continue
        fields = {name for name in a[call].keys() | b[call].keys() if name not in a[call] or name not in b[call]}
        fields |= {name for name in a[call].keys() & b[call].keys() if a[call][name] != b[call][name]}
        found |= {(intent, call, name) for name in fields}
    return found


def told(calls: Iterable[Call], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Each call by method and path, with its fields."""
    found: dict[str, dict[str, Any]] = {}
    for call in calls:
        path, raw = call.path, call.content.decode()
        for value, name in names.items():
            path, raw = path.replace(value, name), raw.replace(value, name)
        fields = {f"?{name}": names.get(value, value) for name, value in call.query.items()}
        fields |= dict(flat("", msgspec.json.decode(raw))) if raw else {}
        found[f"{call.method} {path}"] = fields
    return found


def flat(place: str, value: Any) -> Iterable[tuple[str, Any]]:
    """A body's fields by their dotted places; lists are values."""
    if not isinstance(value, dict) or not value:
        yield place, value
        return
    for name, inner in value.items():
        yield from flat(f"{place}.{name}" if place else name, inner)


def explained(page: str) -> set[Difference]:
    """The rows of a docs page's table: intent, call, fields in backticks (or the words for the whole call)."""
    _, _, after = (DOCS / page).read_text("utf-8").partition(HEADING)
    found: set[Difference] = set()
    for line in after.partition("\n## ")[0].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or len(cells) != 5 or cells[0] in ("intent", "---"):
            continue
        call = cells[1].strip("`")
        fields = re.findall(r"`([^`]+)`", cells[2]) or [WHOLE]
        found |= {(cells[0], call, field) for field in fields}
    return found
