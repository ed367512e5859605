"""What must never stand in the log, and names for people."""

from __future__ import annotations

import base64
import logging
import random
from pathlib import Path
from urllib.parse import quote

import pytest

from jupyter_gpumarket.api.requests import InvalidField
from jupyter_gpumarket.broker import names
from jupyter_gpumarket.broker.logs import REMOVED, Redactor, open_log

CANARY = "canary/key+with=odd&characters"


@pytest.mark.parametrize(
    "spelling",
    [
        CANARY,
        quote(CANARY, safe=""),
        CANARY.encode().hex(),
        CANARY.encode().hex().upper(),
        base64.b64encode(CANARY.encode()).decode(),
        base64.urlsafe_b64encode(CANARY.encode()).decode(),
    ],
)
def test_a_known_secret_is_removed_in_every_spelling(spelling: str) -> None:
    """Raw, in a URL, as hexadecimal, as base64: none of them comes through."""
    redactor = Redactor()
    redactor.learn(CANARY)

    cleaned = redactor.clean(f"before {spelling} after")

    assert cleaned.startswith(f"before {REMOVED}")
    assert cleaned.endswith(" after")
    assert spelling.rstrip("=") not in cleaned


def test_bearer_tokens_nobody_told_us_about_are_removed() -> None:
    """A header that ends up in a message loses its token."""
    cleaned = Redactor().clean("sent Authorization: Bearer abcdef123456 to the market")

    assert "abcdef123456" not in cleaned
    assert "to the market" in cleaned


def test_the_environments_keys_are_learned() -> None:
    """Variables that are named like secrets are removed; others are not."""
    redactor = Redactor()
    environment = {"JUPYTER_GPUMARKET_POOL_KEY": "key-value-1", "AWS_SECRET": "key-value-2", "HOME": "/home/ada"}
    redactor.learn_environment(environment)

    assert redactor.clean("key-value-1 key-value-2 /home/ada") == f"{REMOVED} {REMOVED} /home/ada"


def test_arguments_and_tracebacks_are_cleaned_too(tmp_path: Path) -> None:
    """The sink cleans the finished line, so nothing slips in as an argument or inside an exception."""
    redactor = Redactor()
    redactor.learn(CANARY)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        open_log(tmp_path / "broker.log", redactor)
        try:
            int(CANARY)
        except ValueError:
            logging.getLogger("x").exception("asked with %s", CANARY)
        root.handlers[0].close()
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        logging.captureWarnings(capture=False)
    text = (tmp_path / "broker.log").read_text("utf-8")

    assert "ValueError" in text
    assert CANARY not in text


def test_fresh_names_are_never_taken() -> None:
    """However many leases are open, a new name is plain and unique."""
    rng = random.Random(1)
    taken: set[str] = set()
    for _ in range(3000):
        name = names.fresh(taken, rng)
        assert name not in taken
        assert names.FITS.fullmatch(name)
        taken.add(name)


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "../x", "x" * 41, "ä", "a\n"])
def test_odd_names_are_refused(name: str) -> None:
    """A name is a word: it stands in paths, prompts and logs."""
    with pytest.raises(InvalidField):
        names.checked(name, set())
