"""`demo --marketplaces`: one rent through every marketplace's own API, on stand-ins with real machines behind them.

Each stand-in speaks its marketplace's API on loopback and rents hosts of a pool on this machine; the adapters, the
lease engine, the links, the cells and the ledger are what runs in production. With `--faults`, each trouble that
a stand-in can make is made once, and what counts is that in the end nothing is rented and the books are true.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec

from jupyter_gpumarket.api import LeaseView, OfferSearch, Reconciliation, RunRequest, RunWish
from jupyter_gpumarket.cli.market import wait_ended
from jupyter_gpumarket.cli.tables import safe, text_table
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.config import folders, private_folder, write_private
from jupyter_gpumarket.demo.stage import HOSTS, START_S, Stage, say, wait_for
from jupyter_gpumarket.errors import ConfigError, GpuMarketError
from jupyter_gpumarket.marketplaces.registry import MARKETPLACES
from jupyter_gpumarket.models import ENDED_RUNS, ENDED_STATES, LeaseRequest, LeaseState, OfferQuery, Owner, Record
from jupyter_gpumarket.money import cost_nusd, format_usd, usd
from jupyter_gpumarket.simulator.faults import WORDS, Fault
from jupyter_gpumarket.simulator.process import FILE, STAND_INS, Told

T = TypeVar("T")
# Two at a time: each rent starts a cluster process here and an agent and a kernel on its machine.
AT_ONCE = 2
PATIENCE_S = 180.0
GPU = "NVIDIA L4:24"
SECONDS = 3
CODE = f"import platform, time\ntime.sleep({SECONDS})\nprint('a cell ran on', platform.node(), 6 * 7)"
# Impatient where real marketplaces ask for patience. An adapter takes of these what it has.
OPTIONS: dict[str, Any] = {
    "calls_per_s": 50.0,
    "listing_lag_s": 0,
    "charge_delay_s": 0,
    "disk_gb": 8,
    "disk_gib": 8,
    "cpu_cores": 1,
    "memory_gib": 1,
    "bid_wait_s": 30.0,
    "bid_poll_s": 0.2,
    "ssh_user": "root",
}
# What a bill's smallest step is, beside its time quantum: lines are rounded so in the marketplace's own records.
LINE_NUSD = {"vast": usd("0.001")}
LINES = 2
# Hyperbolic's list tells no end of an instance: it is seen by looking whether it is still there, some seconds later.
END_SEEN_S = {"hyperbolic": 2}


class Row(Record, frozen=True, kw_only=True):
    """How one rent went. Amounts are nano-dollars; `allowed_nusd` is 1 % of their bill, or one billing step."""

    marketplace: str
    state: str = ""
    said: str = ""
    seconds: float = 0.0
    ours_nusd: int = 0
    theirs_nusd: int = 0
    gap_nusd: int = 0
    allowed_nusd: int = 0
    explained: str = ""
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        """A cell ran, it is released, there is a bill, and the bills agree."""
        agrees = self.theirs_nusd > 0 and abs(self.gap_nusd) <= self.allowed_nusd
        return not self.trouble and self.state == LeaseState.RELEASED and "42" in self.said and agrees


class FaultRow(Record, frozen=True, kw_only=True):
    """How one trouble ended."""

    marketplace: str
    fault: str
    happened: bool
    ended: str
    rented: int
    charged_nusd: int
    trouble: str = ""

    @property
    def is_good(self) -> bool:
        """Whatever became of the lease, in the end nothing is rented and its books are closed."""
        return not self.trouble and self.rented == 0 and self.ended in {state.value for state in ENDED_STATES}


class MarketStage(Stage):
    """A pool, a stand-in for each of these marketplaces on it, and settings that point at them."""

    # One price: where machines are listed by kind, the going of a cheaper one would make the kind dearer meanwhile.
    hosts = tuple((name, "0.36", region) for name, _, region in HOSTS)

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        super().__init__(folder)
        self._names = names
        self.stands: dict[str, Told] = {}

    def _start(self) -> None:
        facts = self._start_pool("--login", "root,ubuntu", "--demo-gpu", GPU)
        say(f"starting stand-ins for {', '.join(self._names)}")
        where = private_folder(self._folder / "simulator")
        write_private(where / "pool.key", facts["user_token"].encode())
        options = ["--folder", str(where), "--pool", facts["url"], "--pool-key-file", str(where / "pool.key")]
        self._run("simulator", "simulator", *options, "--marketplaces", ",".join(self._names), "--boot-s", "1")
        file = where / FILE
        told = wait_for(lambda: file.read_bytes() if file.exists() else None, "the stand-ins", self._alive)
        self.stands = msgspec.json.decode(told, type=dict[str, Told])
        here = folders()
        write_private(
            here.settings_file, settings_of({name: stand.url for name, stand in self.stands.items()}).encode()
        )
        for name, stand in self.stands.items():
            write_private(here.configuration / f"{name}.key", stand.key.encode())
        with connect(timeout_s=START_S) as client:
            wait_for(lambda: self._all_list(client), "offers of all marketplaces", self._alive)

    def _all_list(self, client: Client) -> bool | None:
        listed = client.offers(OfferSearch(refresh=True))
        with_offers = {offer.marketplace for offer in listed.offers}
        return with_offers >= set(self._names) or None

    def control(self, name: str, method: str, path: str, body: object = None) -> Any:
        """The stand-in's own door: faults, and the truth about what is rented."""
        stand = self.stands[name]
        headers = {"Authorization": f"Bearer {stand.control_token}"}
        url = f"{stand.url}/_simulator/{path}"
        reply = httpx.request(method, url, json=body, headers=headers, trust_env=False, timeout=30)
        reply.raise_for_status()
        return reply.json()

    def own_book(self, name: str, view: LeaseView, both: Reconciliation) -> Reconciliation:
        """The comparison with what the stand-in itself knows, where the marketplace tells no bill."""
        (mine,) = [row for row in self.control(name, "GET", "rentals") if row["label"] == view.lease.label]
        theirs = cost_nusd(mine["rate_nusd_hour"], mine["ended_ms"] - (mine["running_ms"] or mine["ended_ms"]))
        words = "the marketplace tells no bill; compared with the stand-in's own book"
        return msgspec.structs.replace(
            both, theirs_nusd=theirs, gap_nusd=theirs - both.ours_nusd, explained=words, checked_ms=0
        )

    def rented(self, name: str) -> int:
        """How many machines are really rented there."""
        return sum(rental["phase"] != "ended" for rental in self.control(name, "GET", "rentals"))


def settings_of(urls: dict[str, str]) -> str:
    """Settings for stand-ins at these URLs: each adapter gets of OPTIONS what it takes."""
    lines = [
        "ask = false",
        'budget = "1.00"',
        "hours = 1.0",
        'project = "demo"',
        "demo_gpus = true",
        "public_lists = false",
    ]
    for name, url in urls.items():
        lines += ["", f"[marketplaces.{name}]"]
        lines += [f"{option} = {json.dumps(value)}" for option, value in options_of(name, url).items()]
    return "\n".join(lines) + "\n"


def options_of(name: str, url: str) -> dict[str, Any]:
    """What of OPTIONS this marketplace's adapter takes, and its stand-in's URL."""
    (entry,) = [entry for entry in MARKETPLACES if entry.name == name]
    return {"url": url} | {option: OPTIONS[option] for option in entry.options.__struct_fields__ if option in OPTIONS}


def tour(folder: Path, wanted: str, faults: bool) -> tuple[int, bool]:
    """Rent through each, run a cell, report; then, on wish, the faults. The exit code, and whether all was given back.

    Raises:
        ConfigError: a marketplace that has no stand-in.
    """
    names = names_of(wanted)
    with MarketStage(folder, names) as stage:
        say(f"renting through {len(names)} marketplaces, {AT_ONCE} at a time: a cell of {SECONDS} s on each")
        rows = _on_each(names, lambda name: _visit(stage, name))
        fault_rows = _on_each(names, lambda name: _troubles(stage, name)) if faults else []
        troubles = [row for some in fault_rows for row in some]
    print("\n" + report_of(rows))
    if faults:
        print("\n" + faults_report_of(troubles))
    write_private(folder / "markets.json", msgspec.json.encode({"rents": rows, "faults": troubles}))
    good = all(row.is_good for row in rows) and all(row.is_good for row in troubles)
    return (0 if good else 1), stage.is_clean


def names_of(wanted: str) -> tuple[str, ...]:
    """The marketplaces of a list such as "vast,lium"; all that have a stand-in for "all".

    Raises:
        ConfigError: one of them has none.
    """
    if wanted == "all":
        return tuple(STAND_INS)
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    unknown = [name for name in names if name not in STAND_INS]
    if unknown or not names:
        raise ConfigError(f"no stand-in for {', '.join(unknown) or 'nothing'}; there are: {', '.join(STAND_INS)}")
    return names


def _on_each(names: Sequence[str], act: Callable[[str], T]) -> list[T]:
    with ThreadPoolExecutor(AT_ONCE) as workers:
        return list(workers.map(act, names))


def _visit(stage: MarketStage, name: str) -> Row:
    """One rent from wish to bill."""
    started = time.monotonic()
    try:
        with connect(timeout_s=START_S) as client:
            view = _followed(client, _wish(client, name, f"tour-{name}"), LeaseState.READY)
            if view.lease.state is not LeaseState.READY:
                return Row(marketplace=name, state=view.lease.state, trouble=view.lease.reason)
            said = _run_cell(client, view, f"tour-{name}-cell")
            view = wait_ended(client, client.release(view.lease.lease_id, "the demo has seen enough"), PATIENCE_S)
            both = _compared(client, view)
            if not _bills(client, name):
                both = stage.own_book(name, view, both)
    except (GpuMarketError, TimeoutError) as error:
        return Row(marketplace=name, trouble=str(error) or type(error).__name__)
    row = Row(
        marketplace=name,
        state=view.lease.state,
        said=said,
        seconds=time.monotonic() - started,
        ours_nusd=both.ours_nusd,
        theirs_nusd=both.theirs_nusd,
        gap_nusd=both.gap_nusd,
        allowed_nusd=allowed(view, both),
        explained=both.explained,
    )
    say(f"{name}: {'as it should be' if row.is_good else 'NOT as it should be'}, {safe(row.said)}")
    return row


def allowed(view: LeaseView, both: Reconciliation) -> int:
    """1 % of their bill; or one billing step: a quantum of time, the second that clocks are read to, rounded lines.

    Where the marketplace tells no bill, nor from when it counts, its start is seen to two seconds; so is its end where
    only the absence of a rental tells it.
    """
    offer = view.lease.offer
    assert offer is not None
    step_s = max(1, offer.billing.quantum_s) + (1 if both.checked_ms else 3) + END_SEEN_S.get(offer.marketplace, 0)
    quantum = -(-view.lease.price_nusd_hour * step_s // 3600)
    return max(both.theirs_nusd // 100, quantum + LINE_NUSD.get(offer.marketplace, 0) * LINES)


def _bills(client: Client, name: str) -> bool:
    (info,) = [info for info in client.marketplaces() if info.name == name]
    return info.capabilities is not None and info.capabilities.charges


def _wish(client: Client, name: str, request_id: str) -> LeaseView:
    request = LeaseRequest(
        request_id=request_id,
        query=OfferQuery(marketplaces=(name,)),
        budget_nusd=usd("1"),
        max_s=1800,
        owner=Owner(user="demo", project="demo", notebook=f"{name}.ipynb"),
        grace_s=300,
    )
    end = time.monotonic() + PATIENCE_S
    # Both machines may be rented through other marketplaces just now.
    while not client.offers(OfferSearch(query=request.query, refresh=True)).offers:
        if time.monotonic() > end:
            raise TimeoutError(f"{name} offers nothing")
        time.sleep(0.5)
    return client.wish(request)


def _followed(client: Client, view: LeaseView, *states: LeaseState) -> LeaseView:
    end = time.monotonic() + PATIENCE_S
    while view.lease.state not in states and view.lease.state not in ENDED_STATES:
        if time.monotonic() > end:
            client.release(view.lease.lease_id, "it took too long")
            raise TimeoutError(f"{view.lease.name} is still {view.lease.state.value}")
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=5)
    return view


def _run_cell(client: Client, view: LeaseView, run_id: str) -> str:
    """What the cell printed."""
    lease_id, owner = view.lease.lease_id, view.lease.request.owner
    client.start_run(RunWish(run_id=run_id, lease_id=lease_id, session="main", owner=owner, cell_id="demo"))
    said, seen = "", 0
    with client.cluster(lease_id) as cluster:
        cluster.run(RunRequest(run_id=run_id, lease_id=lease_id, code=CODE, owner=owner, cell_id="demo"))
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            batch = cluster.messages(run_id, after=seen, wait_s=5)
            seen += len(batch.messages)
            said += "".join(m.content["text"] for m in batch.messages if m.msg_type == "stream")
            if batch.run.status in ENDED_RUNS and seen == batch.run.messages:
                return said.strip()
    raise TimeoutError(f"the cell on {view.lease.name} did not end")


def _compared(client: Client, view: LeaseView) -> Reconciliation:
    """Their bill beside ours, once the marketplace has written it."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        lines = [line for line in client.story(view.lease.lease_id) if line.kind == "reconciled"]
        if lines:
            return msgspec.convert(lines[-1].body, Reconciliation)
        time.sleep(0.5)
    raise TimeoutError(f"no bill of {view.lease.name} came")


def report_of(rows: Sequence[Row]) -> str:
    """One line for each marketplace."""
    shown = [
        [
            row.marketplace,
            row.state or "-",
            format_usd(row.ours_nusd),
            format_usd(row.theirs_nusd),
            format_usd(row.gap_nusd),
            format_usd(row.allowed_nusd),
            "yes" if row.is_good else "NO",
            safe(row.trouble or row.explained or row.said)[:60],
        ]
        for row in rows
    ]
    headers = ["marketplace", "lease", "our bill", "their bill", "gap", "allowed", "good", "remark"]
    return text_table(headers, shown)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _troubles(stage: MarketStage, name: str) -> list[FaultRow]:
    """Every trouble once, one after the other."""
    rows = []
    for fault in Fault:
        row = _trouble(stage, name, fault)
        say(f"{name}, {fault.value.replace('_', ' ')}: {'ended well' if row.is_good else 'DID NOT END WELL'}")
        rows.append(row)
    return rows


def _trouble(stage: MarketStage, name: str, fault: Fault) -> FaultRow:
    lasting = fault is Fault.WRONG_GPU
    try:
        with connect(timeout_s=START_S) as client:
            while not client.offers(OfferSearch(query=OfferQuery(marketplaces=(name,)), refresh=True)).offers:
                time.sleep(0.5)
            stage.control(name, "POST", "faults", {"fault": fault.value, "times": None if lasting else 1})
            view = client.wish(_request(name, fault))
            view = _followed(client, view, LeaseState.READY)
            happened = lasting or fault.value not in stage.control(name, "GET", "faults")
            if view.lease.state is LeaseState.READY:
                client.release(view.lease.lease_id, "the demo has seen enough")
            view = wait_ended(client, client.lease(view.lease.lease_id), PATIENCE_S)
            happened = happened or fault.value not in stage.control(name, "GET", "faults")
            charged = sum(line.amount_nusd for line in client.costs().charges if line.lease_id == view.lease.lease_id)
    except (GpuMarketError, TimeoutError) as error:
        return FaultRow(
            marketplace=name,
            fault=fault.value,
            happened=False,
            ended="",
            rented=stage.rented(name),
            charged_nusd=0,
            trouble=str(error),
        )
    finally:
        stage.control(name, "POST", "faults", {"fault": fault.value, "times": 0})
    return FaultRow(
        marketplace=name,
        fault=fault.value,
        happened=happened,
        ended=view.lease.state.value,
        rented=stage.rented(name),
        charged_nusd=charged,
    )


def _request(name: str, fault: Fault) -> LeaseRequest:
    return LeaseRequest(
        request_id=f"trouble-{name}-{fault.value}",
        query=OfferQuery(marketplaces=(name,)),
        budget_nusd=usd("0.50"),
        max_s=120,
        owner=Owner(user="demo", project="faults", notebook=f"{name}.ipynb"),
        grace_s=60,
    )


def faults_report_of(rows: Sequence[FaultRow]) -> str:
    """One line for each trouble at each marketplace."""
    shown = [
        [
            row.marketplace,
            WORDS[Fault(row.fault)],
            "yes" if row.happened else "no",
            row.ended or "-",
            str(row.rented),
            format_usd(row.charged_nusd),
            "yes" if row.is_good else "NO",
            safe(row.trouble)[:60],
        ]
        for row in rows
    ]
    return text_table(
        ["marketplace", "trouble", "happened", "lease", "still rented", "charged", "good", "remark"], shown
    )
