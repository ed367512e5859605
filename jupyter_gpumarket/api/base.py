"""What every door of ours has in common: the version, strict requests, and how errors are answered."""

from __future__ import annotations

import msgspec

from jupyter_gpumarket.models import Record

API_VERSION = 2


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what doors send: an unknown field is a 400 that names it."""


class Problem(Record, frozen=True, kw_only=True):
    """Every error answer. `error` is the class name in `errors`, `message` is for people."""

    error: str
    message: str
    field: str = ""
