"""JSON and Vega-Lite from a node: bounded data, and charts that only draw data which came with them.

A chart specification can load from URLs, compute expressions and steer the embedding page (`usermeta`), and the
expression language has been a way into the page before. So a chart passes only when each of its keys is on a list of
drawing keys.
"""

from __future__ import annotations

import re
from typing import Any

from jupyter_gpumarket.cleaning.images import Unfit
from jupyter_gpumarket.cleaning.text import without_colours, words

MAX_ITEMS = 200_000
MAX_DEPTH = 40
MAX_STRING = 100_000

_CHART_KEYS = words(
    """
    $schema data values datasets name mark encoding width height title subtitle text description config view
    autosize layer hconcat vconcat concat columns spacing resolve background padding type x y x2 y2 xOffset yOffset
    color fill stroke opacity fillOpacity strokeOpacity strokeWidth strokeDash size shape theta theta2 radius
    radius2 order row column facet detail tooltip field aggregate bin maxbins step binned timeUnit scale domain
    range scheme zero nice base exponent reverse padding axis grid ticks tickCount labels labelAngle labelFontSize
    titleFontSize orient offset legend sort stack value point line filled interpolate tension thickness band
    cornerRadius innerRadius outerRadius baseline align angle dx dy font fontSize fontWeight fontStyle
    continuousWidth continuousHeight discreteWidth discreteHeight contains fit content clip independent shared left
    right top bottom op
    """
)
_FIELD = re.compile(r"[\w .%()/+:-]{1,200}\Z")
_FIELD_KEYS = frozenset({"field", "x", "y", "op", "aggregate", "timeUnit", "type", "scheme", "interpolate"})
_SCHEMA = re.compile(r"https://vega\.github\.io/schema/vega-lite/v[45][0-9.]*\.json\Z")
_LINKISH = re.compile(r"(?:[a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def clean_json(content: Any) -> Any:
    """The same data with cleaned strings.

    Raises:
        Unfit: too deep, too many items, a string too long, or not JSON.
    """
    return _Copy().of(content, 0)


def clean_vega_lite(content: Any) -> Any:
    """The same chart.

    Raises:
        Unfit: it holds a key that is not on the list, a URL, or too much data.
    """
    chart = clean_json(content)
    if not isinstance(chart, dict) or not _SCHEMA.match(str(chart.get("$schema", ""))):
        raise Unfit("not a Vega-Lite chart")
    _check_chart(chart)
    return chart


class _Copy:
    """Counts what it copies."""

    def __init__(self) -> None:
        self._items = 0

    def of(self, content: Any, depth: int) -> Any:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise Unfit("too much JSON")
        if content is None or isinstance(content, bool | float):
            return content
        if isinstance(content, int):
            if abs(content) >= 2**63:
                raise Unfit("a number too large")
            return content
        if isinstance(content, str):
            if len(content) > MAX_STRING:
                raise Unfit("a string too long")
            return without_colours(content)
        if isinstance(content, list):
            return [self.of(item, depth + 1) for item in content]
        if isinstance(content, dict) and all(isinstance(key, str) and len(key) <= 1_000 for key in content):
            return {without_colours(key): self.of(item, depth + 1) for key, item in content.items()}
        raise Unfit("not JSON")


def _check_chart(part: Any, key: str = "") -> None:
    if isinstance(part, dict):
        for name, item in part.items():
            if name not in _CHART_KEYS:
                raise Unfit(f"a chart with {name[:30]!r}")
            if name == "data":
                _check_data(item)
            elif name == "datasets":
                _check_datasets(item)
            elif name != "$schema":
                _check_chart(item, name)
    elif isinstance(part, list):
        for item in part:
            _check_chart(item, key)
    elif isinstance(part, str) and (_LINKISH.match(part.strip()) or (key in _FIELD_KEYS and not _FIELD.match(part))):
        raise Unfit("a chart with a link or an expression")


def _check_data(data: Any) -> None:
    if not isinstance(data, dict) or not set(data) <= {"values", "name"}:
        raise Unfit("a chart that loads its data")
    if not isinstance(data.get("values", []), list):
        raise Unfit("a chart that parses its data")


def _check_datasets(sets: Any) -> None:
    if not isinstance(sets, dict) or not all(isinstance(rows, list) for rows in sets.values()):
        raise Unfit("a chart that parses its data")
