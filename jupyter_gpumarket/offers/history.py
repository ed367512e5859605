"""How prices were: one row an hour for each GPU model at each marketplace, in a small file of its own.

It holds no money of anybody: a file that is damaged is put aside and begun anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median_low

import msgspec

from jupyter_gpumarket.api import PricePoint, PriceQuery, SavedSearch
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import MS_PER_HOUR
from jupyter_gpumarket.offers.gpus import specs
from jupyter_gpumarket.offers.grammar import GpuWish, parse
from jupyter_gpumarket.offers.sample import sample

log = logging.getLogger(__name__)

KEPT_MS = 180 * 24 * MS_PER_HOUR
# About 20 MB; a year of twelve marketplaces with twenty models each would be five times as much.
MOST_ROWS = 400_000
_TABLES = """
CREATE TABLE IF NOT EXISTS price (
    hour_ms INTEGER NOT NULL, marketplace TEXT NOT NULL, gpu TEXT NOT NULL, kind TEXT NOT NULL,
    low INTEGER NOT NULL, middle INTEGER NOT NULL, offers INTEGER NOT NULL,
    PRIMARY KEY (hour_ms, marketplace, gpu, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS search (name TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
"""
_UPSERT = """
INSERT INTO price VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET
    low = min(low, excluded.low), middle = excluded.middle, offers = max(offers, excluded.offers)
"""


def summed_up(marketplace: str, offers: Iterable[Offer], now_ms: int) -> list[PricePoint]:
    """One list of a marketplace in a few rows: per GPU model and kind, prices of one GPU for an hour. Pure."""
    prices: dict[tuple[str, str], list[int]] = {}
    for offer in offers:
        if offer.gpu_count > 0:
            each = offer.price_nusd_hour // offer.gpu_count
            prices.setdefault((offer.gpu or offer.gpu_raw, offer.kind.value), []).append(each)
    return [
        PricePoint(
            hour_ms=now_ms // MS_PER_HOUR * MS_PER_HOUR,
            marketplace=marketplace,
            gpu=gpu,
            kind=kind,
            low_nusd_hour=min(seen),
            middle_nusd_hour=median_low(seen),
            offers=len(seen),
        )
        for (gpu, kind), seen in sorted(prices.items())
    ]


class PriceBook:
    """The file with prices and saved searches. What cannot be written is logged and forgotten."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pruned_ms = 0
        self._file = _opened(path)

    def note(self, points: Sequence[PricePoint], now_ms: int) -> None:
        """Keep what a list told; the same hour again is made one row."""
        rows = [msgspec.structs.astuple(point) for point in points]
        try:
            with self._file:
                self._file.executemany(_UPSERT, rows)
                if now_ms - self._pruned_ms > MS_PER_HOUR:
                    self._prune(now_ms)
        except sqlite3.Error as error:
            log.warning("the price history could not be written: %s", error)

    def points(self, query: PriceQuery) -> list[PricePoint]:
        """What is known, oldest first.

        Raises:
            BadRequest: an unknown GPU name.
        """
        wish = parse(query.gpu)
        read = self._file.execute("SELECT * FROM price WHERE hour_ms >= ? ORDER BY 1, 2, 3, 4", (query.since_ms,))
        found = [PricePoint(**dict(zip(PricePoint.__struct_fields__, row, strict=True))) for row in read]
        return [p for p in found if _fits(p, wish) and (not query.marketplaces or p.marketplace in query.marketplaces)]

    def searches(self) -> list[SavedSearch]:
        """The saved searches by name."""
        rows = self._file.execute("SELECT body FROM search ORDER BY name").fetchall()
        return [msgspec.json.decode(row[0], type=SavedSearch) for row in rows]

    def keep(self, search: SavedSearch) -> None:
        """Save a search, in place of one with its name."""
        with self._file:
            self._file.execute(
                "INSERT OR REPLACE INTO search VALUES (?, ?)", (search.name, msgspec.json.encode(search))
            )

    def drop(self, name: str) -> bool:
        """Forget a search; whether there was one."""
        with self._file:
            return self._file.execute("DELETE FROM search WHERE name = ?", (name,)).rowcount > 0

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _prune(self, now_ms: int) -> None:
        self._pruned_ms = now_ms
        self._file.execute("DELETE FROM price WHERE hour_ms < ?", (now_ms - KEPT_MS,))
        newest = "SELECT hour_ms FROM price ORDER BY hour_ms DESC LIMIT 1 OFFSET ?"
        self._file.execute(f"DELETE FROM price WHERE hour_ms <= ({newest})", (MOST_ROWS,))  # noqa: S608


def _opened(path: Path) -> sqlite3.Connection:
    path.touch(0o600)
    os.chmod(path, 0o600)
    try:
        return _with_tables(path)
    except sqlite3.DatabaseError as error:
        log.warning("the price history %s cannot be read (%s); it is put aside and begun anew", path, error)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".damaged"))
        path.touch(0o600)
        return _with_tables(path)


def _with_tables(path: Path) -> sqlite3.Connection:
    file = sqlite3.connect(path, timeout=5)
    try:
        # Losing the last hour's prices at a power cut is no harm; waiting for the disk at every list would be.
        file.execute("PRAGMA synchronous = OFF")
        file.executescript(_TABLES)
    except BaseException:
        file.close()
        raise
    return file


def _fits(point: PricePoint, wish: GpuWish) -> bool:
    """By model and, where the model is known, by its memory; a count means nothing for a price per GPU."""
    if wish.models is not None and point.gpu not in wish.models:
        return False
    spec = specs().get(point.gpu)
    low, high = wish.vram_low_gib or 0.0, wish.vram_high_gib or float("inf")
    return spec is None or low <= spec.vram_gib <= high


def sample_points() -> list[PricePoint]:
    """The shipped sample as points of its own day, so that a history begins somewhere."""
    return [point for name, offers in sample().items() for point in summed_up(name, offers, offers[0].seen_ms)]
