"""The functions behind `import jupyter_gpumarket as gm`. Amounts of money are text like "2.50": none is a float."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import msgspec
import polars as pl

from jupyter_gpumarket import config
from jupyter_gpumarket.api import BudgetView, CostQuery, LeaseView, OfferList, PriceQuery, SavedSearch, SearchView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import Client
from jupyter_gpumarket.client import connect as _connect
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import ENDED_STATES, Charge, LeaseState, OfferQuery, Scope
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook.data import Data, DataStore
from jupyter_gpumarket.notebook.frames import charges_frame, explained, offers_frame, prices_frame
from jupyter_gpumarket.notebook.gpu_cluster import GPUCluster
from jupyter_gpumarket.notebook.map_results import MapResults, all_maps, map_folder
from jupyter_gpumarket.notebook.rent_call import rent_and_wait
from jupyter_gpumarket.notebook.reprs import Costs, Leases, costs_of
from jupyter_gpumarket.notebook.searching import Amount, amount_nusd, least_tier, price_kind, search_of
from jupyter_gpumarket.notebook.values import transfer_words

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
    max_price: Amount | None = None,
    region: str | None = None,
    tier: str | None = None,
    kind: str | None = None,
    marketplaces: tuple[str, ...] = (),
    cpu_cores: int | None = None,
    memory_gib: float | None = None,
    hours: float = 1.0,
    disk_gib: float | None = None,
    in_gib: float = 0.0,
    out_gib: float = 0.0,
    sort: str = "price",
    refresh: bool = False,
    limit: int = 1000,
    explain: bool = False,
) -> pl.DataFrame:
    """What can be rented now, as a frame, best first. Prices in dollars are exact decimals.

    While no account is set up, a dated sample of the markets is shown too; its rows are not `rentable`. Marketplaces
    that do not answer are named on standard error.

    Args:
        gpu: the grammar `names:memory:count`, such as "A100:80GB", "24GB..80GB", "H100,H200:80GB..:8".
        max_price: dearest price an hour, dollars, for all GPUs of an offer.
        region: "EU", "NA" and the like, or a part of a region's or country's name.
        tier: ">=verified": this tier or a better one.
        kind: "spot" or "on_demand".
        hours, disk_gib, in_gib, out_gib: the job that the all-in price is for.
        sort: "price", "price_per_gpu", "price_per_vram", "price_per_tflops", "vram", "total" (the job, all in),
            "cost_to_finish" (with the risk of an interruption), "reliability" or "saving".
        explain: print which filter removed how many.

    Raises:
        BadRequest: names what cannot be read, and what is near it.
    """
    query = OfferQuery(
        gpu=gpu,
        vram_gib=vram_gib,
        gpu_count=gpu_count,
        max_price_nusd_hour=amount_nusd("max_price", max_price),
        region=region,
        marketplaces=marketplaces,
        tier=least_tier(tier),
        kind=price_kind(kind),
        cpu_cores=cpu_cores,
        memory_gib=memory_gib,
    )
    job = search_of(query, hours=hours, disk_gib=disk_gib, in_gib=in_gib, out_gib=out_gib)
    found = connect().offers(msgspec.structs.replace(job, sort=sort, refresh=refresh, limit=limit))
    _tell(found, steps=explain)
    return offers_frame(found.offers, found.figures, found.baselines)


def _tell(found: OfferList, *, steps: bool) -> None:
    """What a frame has no place for."""
    for step in found.steps if steps else ():
        sys.stdout.write(f"{one_line(step.filter)}: {step.before} → {step.after} offers\n")
    for status in found.statuses:
        if not status.ok:
            sys.stderr.write(f"{one_line(status.message, 300)} (its list is {in_words(status.age_s)} old)\n")


def explain(offer: pl.DataFrame | Mapping[str, Any]) -> pl.DataFrame:
    """Why an offer costs what it costs, and ranks where it ranks: `gm.explain(frame[0])`, `frame` being `gm.offers()`.

    Raises:
        BadRequest: it is no row of `offers()`.
    """
    if isinstance(offer, pl.DataFrame):
        return explained(offer.row(0, named=True) if offer.height else {})
    return explained(offer)


def price_history(gpu: str | None = None, *, days: float = 30, marketplaces: tuple[str, ...] = ()) -> pl.DataFrame:
    """How prices per GPU were, hour by hour, as far as your broker has seen them. Times are UTC.

    Raises:
        BadRequest: an unknown GPU name; names the nearest.
    """
    since_ms = round(time.time() * 1000 - days * 86_400_000)
    query = PriceQuery(gpu=gpu, marketplaces=marketplaces, since_ms=max(0, since_ms))
    return prices_frame(connect().prices(query).points)


def save_search(
    name: str, gpu: str | None = None, *, max_price: Amount, region: str | None = None, tier: str | None = None
) -> list[SearchView]:
    """Be told when something fits: the broker looks while it runs, and the sidebar shows it. Returns all searches.

    Raises:
        BadRequest: names what cannot be read.
    """
    query = OfferQuery(
        gpu=gpu, max_price_nusd_hour=amount_nusd("max_price", max_price), region=region, tier=least_tier(tier)
    )
    return connect().keep_search(SavedSearch(name=name, query=query))


def searches() -> list[SearchView]:
    """The saved searches, and what each last found."""
    return connect().searches()


def drop_search(name: str) -> list[SearchView]:
    """Forget a saved search."""
    return connect().drop_search(name)


def charges(*, since_ms: int = 0, until_ms: int | None = None, lease: str | None = None) -> list[Charge]:
    """The ledger's lines as records; those of open leases are provisional up to now."""
    return connect().costs(CostQuery(since_ms=since_ms, until_ms=until_ms, lease=lease)).charges


def costs(*, since_ms: int = 0, until_ms: int | None = None, lease: str | None = None) -> Costs:
    """The ledger's lines as a frame: what for, how much (exact), who, when, where. Times are UTC.

    At a cell's end it shows a chart by day, and a table of the same.
    """
    return costs_of(charges_frame(charges(since_ms=since_ms, until_ms=until_ms, lease=lease)))


def map_results(map_id: str) -> MapResults:
    """What a map has brought so far, also while it runs: a sequence with None for what is not there.

    Raises:
        BadRequest: no map of that id is known.
    """
    return MapResults(map_folder(config.folders().state / "clusters", map_id), _cost_of)


def put(value: Any, *, stage: bool = False) -> Data:
    """A handle to a file (by its path) or an object, by content: `-i` and `--map` bring it to each node once.

    With `stage`, it goes to all ready nodes now; what that takes is printed first.

    Raises:
        BadRequest: no such file. CodecError: an object that cannot be sent.
    """
    data = DataStore(config.folders()).put(value)
    if not stage:
        return data
    client = connect()
    ready = [view.lease for view in client.leases(nodes=False) if view.lease.state is LeaseState.READY]
    for number, lease in enumerate(ready):
        with client.cluster(lease.lease_id) as cluster:
            ways = cluster.dask().ways if number else ()
            former = {one.lease_id for one in ready[:number]}
            is_near = any(way.is_direct and way.from_lease == lease.lease_id and way.to_lease in former for way in ways)
            words = transfer_words(data.size, lease) + ("; from another node, which has it then" if is_near else "")
            print(f"{one_line(lease.name)}: {words}", file=sys.stderr)  # noqa: T201
            cluster.give_file(data.path, data.sha256)
            cluster.stage(lease.lease_id, data.sha256)
    return data


def get(data: Data) -> Any:
    """What a handle stands for: the object, or the file's path. The bytes are checked first.

    Raises:
        BadRequest: it is no handle.
        CodecError: they are gone, or are not what they were.
    """
    if not isinstance(data, Data):
        raise BadRequest(f"get: takes what gm.put has given, not one {type(data).__name__}")
    return DataStore.get(data)


def maps() -> list[MapResults]:
    """All maps whose results are still on this computer, newest first."""
    return list(all_maps(config.folders().state / "clusters", _cost_of))


def _cost_of(run_id: str) -> int:
    return connect().run_cost(run_id).amount_nusd


def leases(*, ended: bool = False) -> Leases:
    """Open leases with their money as of now; with `ended`, all. A list, which shows itself as a table."""
    return Leases(connect().leases(all=ended))


def rent(gpu: str | None = None, *, budget: str, hours: float, name: str = "", timeout_s: float = 900) -> LeaseView:
    """Rent a node and wait until it is ready. Budget in dollars, as text; both limits are hard.

    Raises:
        LeaseFailed: no offer led to a ready node in time. BudgetExceeded: a budget does not cover it.
    """
    return rent_and_wait(connect(), OfferQuery(gpu=gpu), budget=budget, hours=hours, name=name, timeout_s=timeout_s)


def cluster(n: int | None = None, **options: Any) -> GPUCluster:
    """Rent `n` nodes with Dask on them, side by side, and wait until they work: see `GPUCluster`."""
    return GPUCluster(n, **options)


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
