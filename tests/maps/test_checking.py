"""What a node sends as an item's result is checked before it is kept."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.cluster.maps.checking import check_file, checked_here, is_quick, is_welcome
from jupyter_gpumarket.errors import CodecError
from jupyter_gpumarket.wire.mapping import ItemOutcome


def outcome(value: Any, **more: Any) -> ItemOutcome:
    encoded = codecs.encode(value)
    fields: dict[str, Any] = {
        "codec": encoded.codec,
        "data": encoded.data,
        "size": len(encoded.data),
        "sha256": hashlib.sha256(encoded.data).hexdigest(),
        **more,
    }
    return ItemOutcome(map_id="m", index=0, attempt=1, status="ok", took_ms=1, **fields)


def test_small_plain_results_are_checked_at_once_and_tables_apart() -> None:
    """Numbers and arrays by our own readers; what a library parses goes to a process of its own."""
    assert is_quick(outcome({"a": 1}))
    assert is_quick(outcome(np.arange(5)))
    assert not is_quick(outcome(pl.DataFrame({"a": [1]})))
    assert checked_here(outcome([1, 2])).status == "ok"


@pytest.mark.parametrize(
    "bad",
    [
        {"codec": "cloudpickle", "data": pickle.dumps(1)},
        {"codec": "file:x"},
        {"sha256": "0" * 64},
        {"data": b"[1,", "size": 3, "sha256": hashlib.sha256(b"[1,").hexdigest()},
        {"data": b"", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        {"codec": "npy"},
        {"size": 2**60},
    ],
)
def test_a_result_that_is_not_what_it_claims_is_an_error(bad: dict[str, Any]) -> None:
    """Pickles, other bytes, other codecs, no bytes: the item has failed, with a reason, and nothing is kept."""
    one = outcome([1, 2], **bad)
    found = checked_here(one)
    assert (found.status, found.error_name, found.data) == ("error", "CodecError", b"")
    assert found.error_value
    assert is_quick(one) or not is_welcome(one) or one.size != len(one.data)


def test_a_large_result_is_checked_in_its_file(tmp_path: Path) -> None:
    """Size, hash and content; a table that says something else is refused by the process that reads it."""
    part = tmp_path / "part"
    table = outcome(pl.DataFrame({"a": [1, 2]}))
    check_file(table, part)
    assert part.read_bytes() == table.data
    part.write_bytes(table.data)
    whole = msgspec.structs.replace(table, data=b"")
    check_file(whole, part)
    part.write_bytes(table.data[:-1])
    with pytest.raises(CodecError, match="size or SHA-256"):
        check_file(whole, part)
    damaged = table.data[:100] + b"\xff" * 50 + table.data[150:]
    part.write_bytes(damaged)
    with pytest.raises(CodecError):
        check_file(msgspec.structs.replace(whole, sha256=hashlib.sha256(damaged).hexdigest()), part)
