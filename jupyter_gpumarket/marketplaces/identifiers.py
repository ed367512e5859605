"""Marketplaces' identifiers on their way into the path of a call.

What a listing or a journal told goes into a path only if it can be nothing but one part of it: no slash, no dot, no
question mark, and never nothing, since the call would then be for all that is there.
"""

from __future__ import annotations

from jupyter_gpumarket.errors import ConfigError

SHOWN_CHARACTERS = 80


def is_part(identifier: str, *, marks: str = "-_", most: int | None = None) -> bool:
    """Whether it can only be one part of a path: ASCII letters, digits and `marks`, at least one, at most `most`."""
    if not identifier or (most is not None and len(identifier) > most):
        return False
    return all(c.isascii() and (c.isalnum() or c in marks) for c in identifier)


def path_part(identifier: str, what: str, *, marks: str = "-_", most: int | None = None) -> str:
    """The identifier itself, fit for a path.

    Args:
        what: what it should have been, in the marketplace's word: `a pod of RunPod`.

    Raises:
        ConfigError: it could mean another path.
    """
    if not is_part(identifier, marks=marks, most=most):
        raise ConfigError(f"{identifier[:SHOWN_CHARACTERS]!r} is not {what}")
    return identifier
