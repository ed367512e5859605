"""Plain text tables and JSON for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec


def text_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned by width; figures (what ends in a digit) to the right."""
    cells = [list(headers), *[[safe(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    right = [bool(rows) and all(row[column][-1:].isdigit() for row in cells[1:]) for column in range(len(headers))]
    lines = [
        "  ".join(
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join(lines)


def safe(text: str) -> str:
    """Text from marketplaces and nodes without control characters: a terminal obeys them."""
    return "".join(char if char.isprintable() else "�" for char in text)


def as_json(value: Any) -> str:
    """A record as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
