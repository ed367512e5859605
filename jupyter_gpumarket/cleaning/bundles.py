"""A MIME bundle from a node, type by type: what may be shown is cleaned, the rest is left out with a short note.

The bundle that comes out is also what the notebook file saves, so a colleague who opens it is as safe.
"""

from __future__ import annotations

import html as escaping
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jupyter_gpumarket.cleaning.formulas import clean_latex, clean_markdown
from jupyter_gpumarket.cleaning.html import clean_html, left_out
from jupyter_gpumarket.cleaning.images import CHECKS, Unfit, clean_image
from jupyter_gpumarket.cleaning.structure import clean_json, clean_vega_lite
from jupyter_gpumarket.cleaning.svg import clean_svg
from jupyter_gpumarket.cleaning.text import clean_text, one_line

MAX_TEXT_CHARS = 1_000_000
MAX_TYPES = 20
MAX_SIDE = 10_000


class CleanBundle(NamedTuple):
    """What may be shown, and what was left out (in words)."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    notes: tuple[str, ...] = ()


def clean_bundle(data: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> CleanBundle:
    """The part of a bundle that may be shown; never empty when something was sent."""
    kept: dict[str, Any] = {}
    notes: list[str] = []
    sources: list[str] = []
    for mime in list(data)[:MAX_TYPES]:
        try:
            kept.update(_clean_one(mime, data[mime], notes))
        except Unfit as unfit:
            notes.append(f"{one_line(str(mime), 60)} ({unfit})")
            if mime in _READABLE and isinstance(data[mime], str):
                sources.append(_plain(data[mime]))
    if sources:  # better than "<IPython.core.display.Markdown object>"
        kept["text/plain"] = "\n".join(sources)
    if len(data) > MAX_TYPES:
        notes.append(f"{len(data) - MAX_TYPES} more types")
    if notes and not _shows_all(data, kept):
        _tell(kept, notes)
    return CleanBundle(kept, _clean_metadata(kept, metadata or {}), tuple(notes))


def _clean_one(mime: str, content: Any, notes: list[str]) -> dict[str, Any]:
    if mime in STRUCTURED:
        return {mime: STRUCTURED[mime](content)}
    if isinstance(content, list) and all(isinstance(line, str) for line in content):
        content = "".join(content)
    if not isinstance(content, str):
        raise Unfit("not text")
    if mime in CHECKS:
        return {mime: clean_image(mime, content)}
    if mime == "image/svg+xml":
        return {"text/html": clean_svg(content)}
    if mime == "text/html":
        missed = left_out(content)
        if missed:
            notes.append("text/html in part (" + ", ".join(f"<{tag}>" for tag in missed[:6]) + ")")
        return {mime: clean_html(content)}
    if mime in TEXTUAL:
        return {mime: TEXTUAL[mime](content)}
    raise Unfit("not shown when it comes from a rented node")


def _plain(text: str) -> str:
    if len(text) > MAX_TEXT_CHARS:
        return clean_text(text[:MAX_TEXT_CHARS]) + f"\n[shortened: {len(text):,} characters]"
    return clean_text(text)


TEXTUAL: dict[str, Callable[[str], str]] = {
    "text/plain": _plain,
    "text/markdown": clean_markdown,
    "text/latex": clean_latex,
}
STRUCTURED: dict[str, Callable[[Any], Any]] = {
    "application/json": clean_json,
    "application/vnd.vegalite.v5+json": clean_vega_lite,
    "application/vnd.vegalite.v4+json": clean_vega_lite,
}
# A picture says what the sender meant, whatever else was left out beside it.
_RICH = frozenset(CHECKS) | {"application/vnd.vegalite.v5+json", "application/vnd.vegalite.v4+json"}
# Their source can be read as it is when it is not rendered.
_READABLE = ("text/markdown", "text/latex")


def _shows_all(data: Mapping[str, Any], kept: Mapping[str, Any]) -> bool:
    return any(mime in kept for mime in _RICH) or ("image/svg+xml" in data and "text/html" in kept)


def _tell(kept: dict[str, Any], notes: list[str]) -> None:
    """Put the note where the reader looks: beside the richest form that is left."""
    note = "left out: " + "; ".join(notes)
    if "text/html" in kept:
        kept["text/html"] += f"<p><small>[{escaping.escape(note)}]</small></p>"
    before = kept.get("text/plain", "")
    kept["text/plain"] = f"{before}\n[{note}]" if before else f"[{note}]"


def _clean_metadata(kept: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Only a picture's size, as whole numbers."""
    cleaned: dict[str, Any] = {}
    for mime in kept:
        found = metadata.get(mime)
        if mime in CHECKS and isinstance(found, Mapping):
            sides = {side: found.get(side) for side in ("width", "height")}
            cleaned[mime] = {
                side: round(value)
                for side, value in sides.items()
                if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_SIDE
            }
    return {mime: sizes for mime, sizes in cleaned.items() if sizes}
