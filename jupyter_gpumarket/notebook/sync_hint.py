"""A module that a node lacks and this side has: what an error about it should say."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from jupyter_gpumarket.notebook.sync_find import is_of_python, is_own, places_of, project_of

_MISSING = re.compile(r"No module named '([A-Za-z_][A-Za-z0-9_]{0,99})[.'A-Za-z0-9_]{0,200}")
# A node may send any number of them, and each is looked for on this disk.
MAX_TEXT, MAX_TEXTS, MAX_NAMES = 100_000, 20, 5


def hint(texts: Iterable[str]) -> str:
    """How the first module that is missing in these words of a node gets there; empty where that helps nothing."""
    for text in list(texts)[-MAX_TEXTS:]:
        for name in islice(dict.fromkeys(_MISSING.findall(text[-MAX_TEXT:])), MAX_NAMES):
            places = places_of(name, sys.modules)
            if places and not is_of_python(name, places):
                return _told(name, places[0])
    return ""


def _told(name: str, place: Path) -> str:
    if is_own(place, project_of(Path.cwd())):
        return f"{name} is here ({place}) and not on the node: `%%gpu --sync` brings your own modules, kept up to date"
    if any(part.endswith("-packages") for part in place.parts):
        return (
            f"{name} is installed here and not on the node: `%%gpu --sync` shows a plan, and installs what is missing"
        )
    return f"{name} is here ({place}) and not on the node: `%%gpu --sync {name}` brings it"
