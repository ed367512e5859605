"""The broker's log: a 0600 file whose writer knows what must never stand in it."""

from __future__ import annotations

import base64
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

REMOVED = "[removed]"
MIN_SECRET_CHARS = 6
MAX_LOG_BYTES = 20_000_000
# Whatever is sent as a credential goes, also when nobody told us about it.
BEARER = re.compile(r"(?i)(bearer|authorization[\"']?\s*[:=]\s*[\"']?(?:bearer|basic)?)\s+[A-Za-z0-9+/=._~-]{6,}")
SECRET_NAMES = re.compile(r"(?i)(key|token|secret|password|passwd|credential)s?$")


class Redactor:
    """Takes secrets out of text, in every spelling in which they could stand in a log."""

    def __init__(self) -> None:
        self._spellings: set[str] = set()

    def learn(self, secret: str) -> None:
        """From now on this text is removed, also as base64, hexadecimal and in URLs."""
        if len(secret) < MIN_SECRET_CHARS:
            return
        raw = secret.encode()
        encoded = base64.b64encode(raw).decode()
        self._spellings |= {secret, quote(secret, safe=""), raw.hex(), raw.hex().upper(), encoded, encoded.rstrip("=")}
        self._spellings.add(base64.urlsafe_b64encode(raw).decode().rstrip("="))

    def learn_environment(self, environment: Mapping[str, str]) -> None:
        """Learn the values of variables that are named like secrets."""
        for name, value in environment.items():
            if SECRET_NAMES.search(name):
                self.learn(value)

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for spelling in sorted(self._spellings, key=len, reverse=True):
            text = text.replace(spelling, REMOVED)
        return BEARER.sub(lambda found: f"{found.group(1)} {REMOVED}", text)


class _CleanFormatter(logging.Formatter):
    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)sZ %(levelname)s %(name)s: %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
        self._redactor = redactor
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        # After formatting, so that arguments and tracebacks are cleaned too.
        return self._redactor.clean(super().format(record))


def open_log(path: Path, redactor: Redactor) -> None:
    """Send all logging to a 0600 file; a log over 20 MB is moved aside first. Never follows a planted link."""
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_suffix(".old.log"))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)
    handler = logging.StreamHandler(os.fdopen(descriptor, "a", encoding="utf-8", errors="replace"))
    handler.setFormatter(_CleanFormatter(redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    # These tell every request with its URL; what a marketplace is asked is in the journal.
    for chatty in ("httpx", "httpcore", "alembic", "tornado.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _to_log


def _to_log(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("jupyter_gpumarket.broker").critical("ended by an error", exc_info=(kind, error, trace))
