"""A map's files read by the door, and how results are compared and costs shared. Pure, but for a folder."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import ItemState, ItemView, MapRequest
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.mapfiles import OUTCOMES_NAME, Line, OutcomeLog, PackedItem, PackReader, pack
from jupyter_gpumarket.notebook.comparing import difference
from jupyter_gpumarket.notebook.map_results import MapResults, map_folder, split
from jupyter_gpumarket.notebook.mapping import suspected

REQUEST = MapRequest(map_id="map1", code="item", item_name="item", items_sha256="0" * 64, count=4)


def view(n: int, index: int, value: Any = None, **more: Any) -> ItemView:
    fields: dict[str, Any] = {"state": ItemState.OK, "lease_id": "a", "run_id": "r1", "tries": 1, "took_ms": 10}
    if "state" not in more:
        encoded = codecs.encode(value)
        fields.update(codec=encoded.codec, size=len(encoded.data), data=encoded.data, sha256=str(hash(encoded.data)))
    return ItemView(n=n, index=index, ended_ms=1, **{**fields, **more})


def line(one: ItemView) -> Line:
    return Line(entry=one.index, attempt=1, lease_id=one.lease_id, status="ok", view=one)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "request.json").write_bytes(msgspec.json.encode(REQUEST))
    (tmp_path / "state.json").write_bytes(b'{"state": "running"}')
    return tmp_path


def test_results_grow_while_the_map_runs(folder: Path) -> None:
    """Each look finds what has ended since, in its place; what has not is None."""
    log, results = OutcomeLog(folder), MapResults(folder, lambda _: 1001)
    assert list(results) == [None] * 4
    log.append(line(view(1, 2, {"x": 1.5})))
    log.append(
        line(view(2, 0, state=ItemState.ERROR, error_name="E", error_value="\x1b[2Jbad", stdout="o\x07", tries=2))
    )
    assert results[2] == {"x": 1.5}
    assert results[-2:] == [{"x": 1.5}, None]
    assert results.errors == {0: "E: ␛[2Jbad"}
    assert "\x07" not in results.output(0)
    log.append(line(view(3, 1, np.arange(3), took_ms=20)))
    assert results.counts == {"ok": 2, "error": 1, "poisoned": 0, "open": 1}
    frame = results.frame()
    assert frame["state"].to_list() == ["error", "ok", "ok", "open"]
    assert frame["cost_usd"].sum() == Decimal(1001).scaleb(-9)
    assert "3 of 4" not in repr(results)
    assert "running" in repr(results)


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_written_half_is_cut_off(folder: Path, cut: int) -> None:
    """After a crash in the middle of a write the lines before it are whole, and the next one follows them."""
    log = OutcomeLog(folder)
    log.append(line(view(1, 0, "first")))
    whole = (folder / OUTCOMES_NAME).stat().st_size
    log.append(line(view(2, 1, "second")))
    log.close()
    with (folder / OUTCOMES_NAME).open("r+b") as file:
        file.truncate(whole + cut)
    again = OutcomeLog(folder)
    assert [one.entry for one in again.recover()] == [0]
    again.append(line(view(2, 3, "third")))
    assert [one.index for one in again.read(0, 10, 10**6)] == [0, 3]
    assert MapResults(folder).values() == ["first", None, None, "third"]


def test_a_damaged_line_is_not_believed(folder: Path) -> None:
    """A flipped bit fails its checksum; nothing after it is read."""
    log = OutcomeLog(folder)
    for n in range(3):
        log.append(line(view(n + 1, n, n)))
    log.close()
    path = folder / OUTCOMES_NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert MapResults(folder).counts["ok"] < 3


def test_packed_items_are_read_by_number_and_other_files_refused(tmp_path: Path) -> None:
    """Any item without the others; a file of something else is refused before anything runs."""
    path = tmp_path / "items"
    path.write_bytes(pack([PackedItem(codec="json", data=str(k).encode()) for k in range(5)]))
    reader = PackReader(path)
    assert len(reader) == 5
    assert [one.data for one in reader.read([3, 0])] == [b"3", b"0"]
    for content in (b"abc", path.read_bytes()[:-1], b"\xff\xff\xff\xff"):
        path.write_bytes(content)
        with pytest.raises(BadRequest, match="packed items"):
            PackReader(path)


@pytest.mark.parametrize("name", ["../../etc", "*", "", "map1/..", "absent"])
def test_only_a_maps_id_leads_to_a_map(tmp_path: Path, name: str) -> None:
    """No pattern and no path gets through."""
    (tmp_path / "c" / "maps" / "map1").mkdir(parents=True)
    (tmp_path / "c" / "maps" / "map1" / "state.json").touch()
    assert map_folder(tmp_path, "map1").name == "map1"
    with pytest.raises(BadRequest):
        map_folder(tmp_path, name)


@pytest.mark.parametrize(
    ("first", "second", "tolerance", "same"),
    [
        (1, 1, 0.0, True),
        (1.0, 1.0 + 1e-9, 0.0, False),
        (1.0, 1.0 + 1e-9, 1e-6, True),
        (math.nan, math.nan, 0.0, True),
        (1, "1", 9.0, False),
        (True, False, 9.0, False),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.1]}, 0.2, True),
        ({"a": [1.0, 2.0]}, {"a": [1.0, 2.5]}, 0.1, False),
        ({"a": 1}, {"b": 1}, 9.0, False),
        ([1, 2], [1, 2, 3], 9.0, False),
        (np.array([1.0, math.nan]), np.array([1.0, math.nan]), 0.0, True),
        (np.array([1.0, 2.0]), np.array([1.0, 2.5]), 0.1, False),
        (np.array([1, 2]), np.array([1.0, 2.0]), 0.1, False),
        (pl.DataFrame({"a": [1.0]}), pl.DataFrame({"a": [1.0001]}), 0.01, True),
        (pl.DataFrame({"a": [1.0]}), pl.DataFrame({"a": [2.0]}), 0.01, False),
    ],
)
def test_two_results_are_the_same_or_told_apart(first: Any, second: Any, tolerance: float, same: bool) -> None:
    """Exactly, or within the tolerance; a difference names its place."""
    assert (difference(first, second, tolerance) == "") is same


@pytest.mark.parametrize(
    ("pairs", "names"),
    [
        ([], []),
        ([("a", "b")], []),
        ([("a", "b"), ("b", "a")], []),
        ([("a", "b"), ("c", "b")], ["b"]),
        ([("a", "b"), ("c", "d")], []),
    ],
)
def test_a_machine_is_suspected_only_when_it_alone_is_in_every_difference(
    pairs: list[tuple[str, str]], names: list[str]
) -> None:
    """With two machines nobody can tell which of them is wrong."""
    assert suspected(pairs) == names


@pytest.mark.parametrize("weights", [[1, 2, 3], [0, 0], [7], [10**9, 1, 0]])
def test_the_shares_of_an_amount_add_up_to_it(weights: list[int]) -> None:
    """To the nano-dollar, also when nothing took any time."""
    shares = split(1_000_003, list(enumerate(weights)))
    assert sum(share for _, share in shares) == 1_000_003
    assert [key for key, _ in shares] == list(range(len(weights)))
