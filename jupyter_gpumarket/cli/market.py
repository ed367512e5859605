"""`rent`, `ls`, `logs` and `stop`."""

from __future__ import annotations

import argparse
import getpass
import sys
import time
import uuid

from jupyter_gpumarket.api import LeaseView, OfferSearch
from jupyter_gpumarket.cli.tables import as_json, safe, text_table
from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.config import Settings, folders, load_settings
from jupyter_gpumarket.errors import BadRequest, LeaseFailed, StillRunning
from jupyter_gpumarket.models import ENDED_STATES, LeaseRequest, LeaseState, Offer, OfferQuery, Owner
from jupyter_gpumarket.money import cost_nusd, format_usd, usd
from jupyter_gpumarket.notebook.renting import refuse_nothing
from jupyter_gpumarket.notebook.searching import amount_nusd, least_tier, price_kind

POLL_S = 15.0


def offer_table(listed: list[Offer]) -> str:
    """Offers as people compare them: price first."""
    rows = [
        [
            format_usd(o.price_nusd_hour),
            f"{o.gpu_count}× {o.gpu or o.gpu_raw or '?'}" if o.gpu_count else "CPU",
            f"{o.vram_gib:.0f}" if o.gpu_count else "0",
            str(o.cpu_cores),
            f"{o.memory_gib:.0f}",
            o.region,
            o.kind.value.replace("_", "-"),
            o.marketplace,
            o.machine_id,
        ]
        for o in listed
    ]
    headers = ["$/h", "GPU", "VRAM GiB", "cores", "RAM GiB", "region", "kind", "marketplace", "machine"]
    return text_table(headers, rows)


def query_of(arguments: argparse.Namespace) -> OfferQuery:
    """The query that the options spell.

    Raises:
        BadRequest: a price that is no amount.
    """
    return OfferQuery(
        gpu=arguments.gpu,
        vram_gib=arguments.vram,
        gpu_count=arguments.count,
        max_price_nusd_hour=amount_nusd("--max-price", arguments.max_price),
        region=arguments.region,
        marketplaces=tuple(arguments.marketplace),
        tier=least_tier(arguments.tier),
        kind=price_kind(arguments.kind),
    )


def rent(arguments: argparse.Namespace) -> int:
    """Rent a node and wait until it is ready; Ctrl-C gives it back."""
    settings = load_settings(folders())
    request = _lease_request(arguments, settings)
    with connect() as client:
        best = OfferSearch(
            query=request.query, hours=request.max_s / 3600, sort="cost_to_finish", refresh=True, limit=1
        )
        found = client.offers(best)
        if not found.offers:
            refuse_nothing(found)
        if settings.ask and not arguments.yes and not _agreed(found.offers[0], request):
            print("nothing was rented", file=sys.stderr)
            return 1
        view = client.wish(request)
        try:
            view = _wait_ready(client, view, quiet=arguments.json)
        except KeyboardInterrupt:
            client.release(view.lease.lease_id, "cancelled while renting")
            raise
    print(
        as_json(view) if arguments.json else f"{view.lease.name} is ready at {format_usd(view.lease.price_nusd_hour)}/h"
    )
    return 0


def _lease_request(arguments: argparse.Namespace, settings: Settings) -> LeaseRequest:
    query = query_of(arguments)
    return LeaseRequest(
        request_id=uuid.uuid4().hex,
        query=query,
        budget_nusd=amount_nusd("--budget", arguments.budget) or usd(settings.budget),
        max_s=round((arguments.hours or settings.hours) * 3600),
        owner=Owner(user=getpass.getuser(), project=arguments.project or settings.project),
        name=arguments.name,
        grace_s=settings.grace_s,
    )


def _agreed(best: Offer, request: LeaseRequest) -> bool:
    print(offer_table([best]))
    worst = min(request.budget_nusd, cost_nusd(best.price_nusd_hour, request.max_s * 1000))
    print(f"at most {format_usd(worst)} (budget {format_usd(request.budget_nusd)}, {in_words(request.max_s)})")
    if not sys.stdin.isatty():
        raise BadRequest("nobody can be asked here; say --yes to rent without asking")
    return input("rent it? [y/N] ").strip().casefold() in {"y", "yes"}


def _wait_ready(client: Client, view: LeaseView, *, quiet: bool) -> LeaseView:
    shown = None
    while view.lease.state not in ENDED_STATES:
        state = view.lease.state
        if state != shown and not quiet:
            print(
                f"{iso_utc(view.lease.changed_ms)}  {state.value}  {safe(view.lease.reason)}".rstrip(), file=sys.stderr
            )
        shown = state
        if state is LeaseState.READY:
            return view
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=POLL_S)
    raise LeaseFailed(f"{view.lease.name}: {safe(view.lease.reason) or 'ended before it was ready'}")


def ls(arguments: argparse.Namespace) -> int:
    """List leases."""
    with connect() as client:
        views = client.leases(all=arguments.all)
        orphans = client.orphans()
    if arguments.json:
        print(as_json({"leases": views, "orphans": orphans}))
        return 0
    print(lease_table(views) if views else "nothing is rented")
    for orphan in orphans:
        if orphan.state != "gone":
            print(
                f"ORPHAN {orphan.marketplace} {safe(orphan.rental_id)}: {orphan.state}, may still bill", file=sys.stderr
            )
    return 0


def lease_table(views: list[LeaseView]) -> str:
    """Leases with state in words, rate and money so far."""
    rows = [
        [
            v.lease.name,
            in_state_words(v.lease.state),
            _gpu_of(v),
            f"{format_usd(v.lease.price_nusd_hour)}/h",
            format_usd(v.cost_nusd),
            format_usd(v.lease.request.budget_nusd),
            v.lease.offer.marketplace if v.lease.offer else "",
            v.lease.reason[:60],
        ]
        for v in views
    ]
    return text_table(["node", "state", "GPU", "rate", "cost", "budget", "marketplace", "remark"], rows)


def _gpu_of(view: LeaseView) -> str:
    offer = view.lease.offer
    if offer is None:
        return ""
    return f"{offer.gpu_count}× {offer.gpu or offer.gpu_raw}" if offer.gpu_count else "CPU"


def in_state_words(state: LeaseState) -> str:
    """A state as people say it; above all, whether money may still flow."""
    words = {
        LeaseState.UNCONFIRMED: "reply lost; looking for it (may bill)",
        LeaseState.RELEASING: "release asked (may still bill)",
        LeaseState.RELEASE_UNCONFIRMED: "release asked, not yet confirmed (may still bill)",
        LeaseState.UNREACHABLE: "link lost, trying again",
    }
    return words.get(state, state.value)


def logs(arguments: argparse.Namespace) -> int:
    """Tell a lease's story."""
    with connect() as client:
        lines = client.story(arguments.lease)
    if arguments.json:
        print(as_json(lines))
        return 0
    for line in lines:
        facts = " ".join(f"{key}={value}" for key, value in line.body.items() if value not in ("", None, [], {}))
        print(safe(f"{iso_utc(line.at_ms)}  {line.kind}  {facts}")[:400])
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """Release and wait for the confirmation."""
    if not arguments.lease and not arguments.all:
        raise BadRequest("say which: names or ids, or --all")
    with connect() as client:
        names = [v.lease.lease_id for v in client.leases()] if arguments.all else arguments.lease
        views = [client.release(name, "asked by the user") for name in names]
        ended = [wait_ended(client, view, arguments.timeout) for view in views]
    if arguments.json:
        print(as_json(ended))
    else:
        for view in ended:
            print(f"{view.lease.name}: {in_state_words(view.lease.state)}, cost {format_usd(view.cost_nusd)}")
    unconfirmed = [view.lease.name for view in ended if view.lease.may_bill]
    if unconfirmed:
        raise StillRunning(
            f"the release of {', '.join(unconfirmed)} is not confirmed yet; it is tried again until it is. "
            "`jupyter gpumarket ls` shows when; if it lasts, stop it on the marketplace's own page"
        )
    return 0


def wait_ended(client: Client, view: LeaseView, timeout_s: float) -> LeaseView:
    """Follow a lease to its end, `timeout_s` at most; the last view."""
    end = time.monotonic() + timeout_s
    while view.lease.state not in ENDED_STATES and (left := end - time.monotonic()) > 0:
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=min(POLL_S, left))
    return view
