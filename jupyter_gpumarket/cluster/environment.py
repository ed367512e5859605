"""The process's environment: an allow-list, so that no key of the user's comes near bytes from strangers.

Deleting a variable does not remove it from `/proc/<pid>/environ`, so the process replaces itself (`exec`) with one that
never had it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

_KEPT = frozenset(
    {"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TMP", "TEMP", "SHELL", "PYTHONPATH"}
    | {"VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT", "XDG_RUNTIME_DIR", "COVERAGE_PROCESS_START"}
)
_KEPT_PREFIXES = ("LC_", "PYTHON")


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What the cluster process may see of an environment."""
    return {name: text for name, text in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


def replace_unless_scrubbed(module: str, arguments: list[str]) -> None:
    """Start this process anew (same pid) without the variables that it must not have; return if it has none."""
    clean = scrubbed(os.environ)
    if clean != dict(os.environ):
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], clean)  # noqa: S606 - an argv list
