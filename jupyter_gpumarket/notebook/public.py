"""The functions behind `import jupyter_gpumarket as gm`. Amounts of money are text like "2.50": none is a float."""

from __future__ import annotations

import secrets
import time

import polars as pl

from jupyter_gpumarket import config
from jupyter_gpumarket.api import BudgetView, CostQuery, LeaseView, OfferSearch
from jupyter_gpumarket.client import Client
from jupyter_gpumarket.client import connect as _connect
from jupyter_gpumarket.errors import LeaseFailed
from jupyter_gpumarket.models import ENDED_STATES, Charge, LeaseRequest, LeaseState, OfferQuery, Scope
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook.frames import charges_frame, offers_frame
from jupyter_gpumarket.notebook.identity import owner
from jupyter_gpumarket.notebook.map_results import MapResults, all_maps, map_folder

_CLIENTS: list[Client] = []


def connect() -> Client:
    """The broker's client of this process; a broker is started when none runs.

    Raises:
        BrokerUnavailable: none runs and none could be started.
    """
    if not _CLIENTS:
        _CLIENTS.append(_connect())
    return _CLIENTS[0]


def offers(
    gpu: str | None = None,
    *,
    vram_gib: float | None = None,
    gpu_count: int | None = None,
    max_price: str | None = None,
    region: str | None = None,
    marketplaces: tuple[str, ...] = (),
) -> pl.DataFrame:
    """What can be rented now, cheapest first. `price_usd_hour` is exact.

    Raises:
        BadRequest: an unknown GPU name; names the nearest.
    """
    query = OfferQuery(
        gpu=gpu,
        vram_gib=vram_gib,
        gpu_count=gpu_count,
        max_price_nusd_hour=None if max_price is None else usd(max_price),
        region=region,
        marketplaces=marketplaces,
    )
    return offers_frame(connect().offers(OfferSearch(query=query)).offers)


def charges(*, since_ms: int = 0, until_ms: int | None = None, lease: str | None = None) -> list[Charge]:
    """The ledger's lines as records; those of open leases are provisional up to now."""
    return connect().costs(CostQuery(since_ms=since_ms, until_ms=until_ms, lease=lease)).charges


def costs(*, since_ms: int = 0, until_ms: int | None = None, lease: str | None = None) -> pl.DataFrame:
    """The ledger's lines as a frame: what for, how much (exact), who, when, where. Times are UTC."""
    return charges_frame(charges(since_ms=since_ms, until_ms=until_ms, lease=lease))


def map_results(map_id: str) -> MapResults:
    """What a map has brought so far, also while it runs: a sequence with None for what is not there.

    Raises:
        BadRequest: no map of that id is known.
    """
    return MapResults(map_folder(config.folders().state / "clusters", map_id))


def maps() -> list[MapResults]:
    """All maps whose results are still on this computer, newest first."""
    return all_maps(config.folders().state / "clusters")


def leases(*, ended: bool = False) -> list[LeaseView]:
    """Open leases with their money as of now; with `ended`, all."""
    return connect().leases(all=ended)


def rent(gpu: str | None = None, *, budget: str, hours: float, name: str = "", timeout_s: float = 900) -> LeaseView:
    """Rent a node and wait until it is ready. Budget in dollars, as text; both limits are hard.

    Raises:
        LeaseFailed: no offer led to a ready node in time. BudgetExceeded: a budget does not cover it.
    """
    client = connect()
    view = client.wish(
        LeaseRequest(
            request_id=secrets.token_hex(16),
            query=OfferQuery(gpu=gpu),
            budget_nusd=usd(budget),
            max_s=round(hours * 3600),
            owner=owner(config.load_settings(config.folders()).project, {}),
            name=name,
        )
    )
    deadline_s = time.monotonic() + timeout_s
    while view.lease.state is not LeaseState.READY:
        if view.lease.state in ENDED_STATES:
            raise LeaseFailed(f"no node: {view.lease.reason}")
        if time.monotonic() > deadline_s:
            client.release(view.lease.lease_id, reason="not ready in time")
            raise LeaseFailed(f"{view.lease.name} was not ready within {timeout_s:g} s; it is given back")
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=5.0)
    return view


def release(lease: str, *, timeout_s: float = 60) -> LeaseView:
    """Give a node back, by name or id, and wait for the marketplace's confirmation. Look at `.lease.state`."""
    client = connect()
    view = client.release(lease)
    deadline_s = time.monotonic() + timeout_s
    while view.lease.state not in ENDED_STATES and time.monotonic() < deadline_s:
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=2.0)
    return view


def extend(lease: str, *, hours: float | None = None, budget: str | None = None) -> LeaseView:
    """New totals for a lease's longest time and budget."""
    return connect().extend(
        lease,
        max_s=None if hours is None else round(hours * 3600),
        budget_nusd=None if budget is None else usd(budget),
    )


def budgets() -> list[BudgetView]:
    """All budgets, with what is spent and reserved."""
    return connect().budgets()


def set_budget(scope: str, key: str, limit: str | None) -> list[BudgetView]:
    """Set a hard limit in dollars, as text, on a "notebook", "user" or "project"; None takes it away."""
    return connect().set_budget(Scope(scope), key, None if limit is None else usd(limit))
