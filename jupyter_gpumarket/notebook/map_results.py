"""What a map has brought so far, read from the user's own disk: while it runs, after it, and after everything ended.

Results were checked before they were written down, and are decoded by the closed set of codecs: nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, overload

import msgspec
import polars as pl

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import ItemState, ItemView, MapRequest, MapState
from jupyter_gpumarket.cleaning.messages import clean_failure
from jupyter_gpumarket.cleaning.text import clean_text, one_line
from jupyter_gpumarket.errors import BadRequest, CodecError, GpuMarketError, RemoteError
from jupyter_gpumarket.mapfiles import OUTCOMES_NAME, find_map, read_lines
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.notebook.comparing import difference
from jupyter_gpumarket.notebook.failures import remote_error
from jupyter_gpumarket.notebook.frames import USD

logger = logging.getLogger(__name__)

# So many maps are looked through for one of the same cell before a new one begins.
MAX_FORMER = 200


class _State(Record, frozen=True, kw_only=True):
    """What of state.json is shown."""

    state: MapState
    reason: str = ""


class Difference(Record, frozen=True, kw_only=True):
    """An item whose second run, on another machine, gave something else. Machines are named by their leases."""

    index: int
    what: str
    first: str
    second: str


class MapResults(Sequence[Any]):
    """The results of one map, by item: a value, or None for an item that has none (yet).

    `errors` tells which failed; `output(i)`, `error(i)` and `item(i)` tell more; `frame()` is all of it as a table.
    """

    def __init__(self, folder: Path, cost_of: Callable[[str], int] | None = None) -> None:
        """Read what is there. `cost_of` tells what a cell run cost, in nano-dollars.

        Raises:
            BadRequest: no map lies there.
        """
        self._folder = folder
        self._cost_of = cost_of
        try:
            self._request = msgspec.json.decode((folder / "request.json").read_bytes(), type=MapRequest)
        except (OSError, msgspec.MsgspecError) as error:
            raise BadRequest(f"the map in {folder} cannot be read: {error}") from None
        self._offset = 0
        self._items: dict[int, ItemView] = {}
        self._checks: dict[int, ItemView] = {}

    @property
    def map_id(self) -> str:
        """Its id, as `gm.map_results` takes it."""
        return self._request.map_id

    @property
    def state(self) -> str:
        """running, done or stopped."""
        return self._state().state.value

    @property
    def counts(self) -> dict[str, int]:
        """How many items ended in which way: ok, error, poisoned; and `open`."""
        found = Counter(item.state.value for item in self._read().values())
        return {**{state.value: found[state.value] for state in ItemState}, "open": len(self) - found.total()}

    @property
    def errors(self) -> dict[int, str]:
        """The items that failed, each with its error in one line."""
        failed = {i: item for i, item in sorted(self._read().items()) if item.state is not ItemState.OK}
        return {i: one_line(f"{item.error_name}: {item.error_value}", 300) for i, item in failed.items()}

    def item(self, index: int) -> ItemView | None:
        """How an item ended: state, machine, tries, time; None while it has not. The node's words are not cleaned."""
        return self._read().get(self._place(index))

    def output(self, index: int) -> str:
        """What an item printed: standard output, then standard error."""
        item = self.item(index)
        return "" if item is None else clean_text(item.stdout) + clean_text(item.stderr)

    def error(self, index: int) -> RemoteError | None:
        """An item's exception with its traceback on the node; None when it has none."""
        item = self.item(index)
        if item is None or item.state is ItemState.OK:
            return None
        failure = clean_failure(item.error_name, item.error_value, item.traceback)
        where = f"item {self._place(index)} ({item.state.value} after {item.tries} tries)"
        return remote_error(failure.name, failure.value, list(failure.traceback), where)

    def values(self) -> list[Any]:
        """All results in the order of the items; None where there is none."""
        self._read()
        return [self._value(index) for index in range(len(self))]

    def differences(self, tolerance: float = 0.0) -> list[Difference]:
        """Verified items whose two runs differ: exactly, or by more than `tolerance` (relative and absolute)."""
        self._read()
        found = []
        for index, check in sorted(self._checks.items()):
            first = self._items[index]
            what = self._difference(first, check, tolerance)
            if what:
                found.append(Difference(index=index, what=what, first=first.lease_id, second=check.lease_id))
        return found

    @property
    def verified(self) -> int:
        """How many items were run a second time, on another machine."""
        self._read()
        return len(self._checks)

    def frame(self) -> pl.DataFrame:
        """One row per item: state, tries, seconds, machine, run, cost, error, what it printed.

        An item's cost is its share of what its run cost, by the time that it took there; the shares of all items are
        the run's cost, exactly. Null while that is not known.
        """
        items = self._read()
        costs = self._costs()
        rows = [items.get(index) for index in range(len(self))]
        return pl.DataFrame(
            {
                "item": range(len(self)),
                "state": ["open" if row is None else row.state.value for row in rows],
                "tries": [0 if row is None else row.tries for row in rows],
                "seconds": [None if row is None else row.took_ms / 1000 for row in rows],
                "lease_id": [None if row is None else row.lease_id for row in rows],
                "run_id": [None if row is None else row.run_id for row in rows],
                "cost_usd": pl.Series([costs.get(index) for index in range(len(self))], dtype=USD),
                "error": [self._error_line(row) for row in rows],
                "output": [None if row is None else clean_text(row.stdout + row.stderr) for row in rows],
            },
            schema_overrides={"item": pl.Int64, "tries": pl.Int64, "seconds": pl.Float64, "error": pl.String},
        )

    @staticmethod
    def _error_line(row: ItemView | None) -> str | None:
        if row is None or row.state is ItemState.OK:
            return None
        return one_line(f"{row.error_name}: {row.error_value}", 300)

    def _costs(self) -> dict[int, Decimal]:
        """What each item cost, its second run included, where it is known what its runs cost."""
        shares: dict[str, list[tuple[int, int]]] = {}
        for one in (*self._items.values(), *self._checks.values()):
            shares.setdefault(one.run_id, []).append((one.index, one.took_ms))
        found: dict[int, int] = {}
        for run_id, parts in shares.items():
            try:
                amount = None if self._cost_of is None else self._cost_of(run_id)
            except GpuMarketError:
                amount = None
            for index, cost in [] if amount is None else split(amount, parts):
                found[index] = found.get(index, 0) + cost
        return {index: Decimal(cost).scaleb(-9) for index, cost in found.items()}

    def is_of(self, code: str, items_sha256: str) -> bool:
        """Whether it is a map of this body over these items."""
        return (self._request.code, self._request.items_sha256) == (code, items_sha256)

    def seconds_each(self, code: str) -> float:
        """What an item of this body took here in the mean; 0 where it is another body, or none has ended well."""
        if self._request.code != code:
            return 0.0
        took_ms = [item.took_ms for item in self._read().values() if item.state is ItemState.OK]
        return sum(took_ms) / len(took_ms) / 1000 if took_ms else 0.0

    def __len__(self) -> int:
        return self._request.count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        self._read()
        if isinstance(index, slice):
            return [self._value(one) for one in range(*index.indices(len(self)))]
        return self._value(self._place(index))

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values())

    def __repr__(self) -> str:
        counts = self.counts
        told = ", ".join(f"{number} {name}" for name, number in counts.items() if number)
        return f"<map {self.map_id}: {told} of {len(self)} items; {self.state}>"

    def _place(self, index: int) -> int:
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"item {index}: the map has {len(self)} items")
        return place

    def _state(self) -> _State:
        return msgspec.json.decode((self._folder / "state.json").read_bytes(), type=_State)

    def _read(self) -> dict[int, ItemView]:
        path = self._folder / OUTCOMES_NAME
        if path.exists():
            for line, _, end in read_lines(path, self._offset):
                self._offset = end
                if line.view is not None:
                    (self._checks if line.view.check else self._items)[line.view.index] = line.view
        return self._items

    def _value(self, index: int) -> Any:
        item = self._items.get(index)
        if item is None or item.state is not ItemState.OK or not item.codec:
            return None
        return self._decoded(item)

    def _decoded(self, item: ItemView) -> Any:
        try:
            return codecs.decode(item.codec, self._bytes(item))
        except (OSError, GpuMarketError) as error:
            raise CodecError(f"item {item.index}: its result cannot be read: {error}") from None

    def _bytes(self, item: ItemView) -> bytes:
        if item.size == len(item.data):
            return item.data
        return (self._folder / f"{'check' if item.check else 'result'}-{item.index}").read_bytes()

    def _difference(self, first: ItemView, check: ItemView, tolerance: float) -> str:
        if check.state is not ItemState.OK:
            return f"the second run failed: {one_line(f'{check.error_name}: {check.error_value}')}"
        if (first.codec, first.sha256) == (check.codec, check.sha256):
            return ""
        return difference(self._decoded(first), self._decoded(check), tolerance)


def split(amount_nusd: int, parts: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """An amount in proportion to weights, (key, weight); the shares add up to it exactly."""
    total, given, weighed = sum(weight for _, weight in parts), 0, 0
    shares = []
    for place, (key, weight) in enumerate(parts, start=1):
        weighed += weight
        upto = amount_nusd * weighed // total if total else amount_nusd * place // len(parts)
        shares.append((key, upto - given))
        given = upto
    return shares


def map_folder(clusters: Path, map_id: str) -> Path:
    """Where a map lies.

    Raises:
        BadRequest: there is none of that id.
    """
    folder = find_map(clusters, map_id) if map_id.replace("_", "").isalnum() else None
    if folder is None:
        raise BadRequest(f"no map {map_id[:60]!r} is known; `gm.maps()` lists them")
    return folder


def mean_seconds(clusters: Path, code: str) -> float:
    """What an item took in the newest map that had this body and some results; 0 where none tells."""
    # Files of another version, or damaged ones: a guess that cannot be made must not keep a new map from beginning.
    with contextlib.suppress(GpuMarketError, OSError, msgspec.MsgspecError):
        for one in itertools.islice(all_maps(clusters), MAX_FORMER):
            if (seconds := one.seconds_each(code)) > 0:
                return seconds
    return 0.0


def all_maps(clusters: Path, cost_of: Callable[[str], int] | None = None) -> Iterator[MapResults]:
    """Every map whose files are still here, newest first; of one that moved between clusters the last state.

    Each is read when its turn comes. One that cannot be read is left out: it must not hide the others.
    """
    folders = sorted(clusters.glob("*/maps/*/state.json"), key=lambda path: -path.stat().st_mtime_ns)
    newest = {path.parent.name: path.parent for path in reversed(folders)}
    for folder in sorted(newest.values(), key=_began, reverse=True):
        try:
            found = MapResults(folder, cost_of)
        except BadRequest as error:
            logger.warning("%s", error)
            continue
        yield found


def _began(folder: Path) -> float:
    try:
        return (folder / "request.json").stat().st_mtime
    except OSError:
        return 0.0
