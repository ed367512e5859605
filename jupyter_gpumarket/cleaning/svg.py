"""SVG from a node is shown only as an `<img>` with a `data:` URL: there a browser runs no script and loads nothing.

Before that it is read with a plain XML parser: no entities, no scripts or foreign content, no outside references, and
no small file that draws a thousand million shapes (`<use>` of `<use>` of `<use>` …).
"""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Callable
from xml.parsers import expat

from jupyter_gpumarket.cleaning.images import Unfit
from jupyter_gpumarket.cleaning.text import words

MAX_SVG_CHARS = 4_000_000
MAX_ELEMENTS = 200_000
MAX_DEPTH = 200
MAX_DRAWN = 1_000_000
MAX_FILTERS = 100

_DOCTYPE = re.compile(r"<!DOCTYPE\s+svg\b[^\[\]<>]*>", re.IGNORECASE)
_PROLOGUE = re.compile(r"^\s*<\?xml\s[^<>]*\?>")
_REFERENCE = re.compile(r"""url\(\s*['"]?\s*(?P<url>[^'")]*)""", re.IGNORECASE)
_FORBIDDEN = words(
    """
    script foreignobject iframe object embed audio video canvas handler listener set animate animatemotion
    animatetransform discard feimage
    """
)
_OUTSIDE_STYLE = re.compile(r"@import|@font-face|expression\s*\(|\\", re.IGNORECASE)


def clean_svg(text: str) -> str:
    """A piece of HTML that shows the picture.

    Raises:
        Unfit: it is not well-formed, too large, or holds more than a picture.
    """
    if len(text) > MAX_SVG_CHARS:
        raise Unfit(f"SVG of more than {MAX_SVG_CHARS:,} characters")
    text = _DOCTYPE.sub("", _PROLOGUE.sub("", text, count=1), count=1).strip()
    _Reader().read(text)
    encoded = base64.b64encode(text.encode("utf-8")).decode("ascii")
    return f'<img alt="SVG picture" src="data:image/svg+xml;base64,{encoded}">'


class _Element:
    """An element with an id (or the document): how many shapes it holds, and what else is drawn with it."""

    def __init__(self) -> None:
        self.own = 0
        self.parts: list[_Element] = []
        self.references: list[str] = []


class _Reader:
    """One reading of one document."""

    def __init__(self) -> None:
        self._open: list[tuple[str, _Element]] = []  # each with the nearest element that has an id
        self._root = _Element()
        self._named: dict[str, _Element] = {}
        self._elements = 0
        self._references = 0
        self._filters = 0

    def read(self, text: str) -> None:
        """Raises Unfit for everything that is more than a picture."""
        parser = expat.ParserCreate(encoding="utf-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = _refuse("a document type of its own")
        parser.EntityDeclHandler = _refuse("entities")
        parser.ProcessingInstructionHandler = _refuse("processing instructions")
        try:
            parser.Parse(text.encode("utf-8"), True)  # noqa: FBT003 -- "this is all"
        except (expat.ExpatError, UnicodeEncodeError, ValueError):
            raise Unfit("SVG that is not well-formed") from None
        self._count_drawn()

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        local = name.rpartition(":")[2].lower()
        if not self._open and local != "svg":
            raise Unfit("not an SVG")
        if local in _FORBIDDEN:
            raise Unfit(f"SVG with <{local}>")
        if self._elements > MAX_ELEMENTS or len(self._open) >= MAX_DEPTH:
            raise Unfit("SVG of too many elements")
        self._filters += local == "filter"
        if self._filters > MAX_FILTERS:
            raise Unfit("SVG of too many filters")
        holder = self._holder(attributes.get("id"))
        holder.own += 1
        self._open.append((local, holder))
        for attribute, value in attributes.items():
            self._attribute(attribute.rpartition(":")[2].lower(), attribute.lower(), value)

    def _holder(self, identifier: str | None) -> _Element:
        outer = self._open[-1][1] if self._open else self._root
        if identifier is None or identifier in self._named:
            return outer
        holder = self._named[identifier] = _Element()
        outer.parts.append(holder)
        return holder

    def _end(self, _name: str) -> None:
        self._open.pop()

    def _text(self, text: str) -> None:
        if self._open and self._open[-1][0] == "style":
            if _OUTSIDE_STYLE.search(text):
                raise Unfit("SVG with a style that loads something")
            self._references_in(text)

    def _attribute(self, local: str, full: str, value: str) -> None:
        if local.startswith("on") or full.startswith("xml:base"):
            raise Unfit(f"SVG with the attribute {local[:20]}")
        if local == "href":
            if value.startswith("#"):
                self._refer(value[1:])
            elif not _INSIDE_PICTURE.match(value):
                raise Unfit("SVG with an outside reference")
            return
        if local == "src" or (local == "style" and _OUTSIDE_STYLE.search(value)):
            raise Unfit("SVG with an outside reference")
        self._references_in(value)

    def _references_in(self, text: str) -> None:
        for found in _REFERENCE.finditer(text):
            if not found["url"].startswith("#"):
                raise Unfit("SVG with an outside reference")
            self._refer(found["url"][1:].strip())

    def _refer(self, identifier: str) -> None:
        self._open[-1][1].references.append(identifier)
        self._references += 1
        if self._references > MAX_ELEMENTS:
            raise Unfit("SVG of too many references")

    def _count_drawn(self) -> None:
        """Follow the references: how many shapes would be drawn? A circle, or too many, is refused."""
        drawn: dict[int, int] = {}
        under_way: set[int] = set()

        def total(element: _Element) -> int:
            key = id(element)
            if key in under_way:
                raise Unfit("SVG that refers to itself")
            if key not in drawn:
                under_way.add(key)
                if len(under_way) > MAX_DEPTH:
                    raise Unfit("SVG of references too deep")
                amount = element.own
                named = (self._named[name] for name in element.references if name in self._named)
                for other in itertools.chain(element.parts, named):
                    amount += total(other)
                    if amount > MAX_DRAWN:
                        raise Unfit("SVG that draws too much")
                under_way.discard(key)
                drawn[key] = amount
            return drawn[key]

        total(self._root)


_INSIDE_PICTURE = re.compile(r"data:image/(?:png|jpeg);base64,[A-Za-z0-9+/=\s]*\Z")


def _refuse(what: str) -> Callable[..., None]:
    def handler(*_: object) -> None:
        raise Unfit(f"SVG with {what}")

    return handler
