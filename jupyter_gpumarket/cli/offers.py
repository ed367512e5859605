"""`offers`, `prices` and `searches`: what the markets have, had, and shall be watched for."""

from __future__ import annotations

import argparse
import sys

from jupyter_gpumarket.api import OfferList, OfferSearch, PriceQuery, SavedSearch
from jupyter_gpumarket.cli.market import query_of
from jupyter_gpumarket.cli.tables import as_json, safe, text_table
from jupyter_gpumarket.client import connect
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.frames import explained, offers_frame
from jupyter_gpumarket.notebook.searching import search_of

DAY_MS = 86_400_000


def offers(arguments: argparse.Namespace) -> int:
    """List what can be rented now."""
    with connect() as client:
        found = client.offers(_search(arguments))
    rentable = any(one.rentable for one in found.figures)
    if arguments.json:
        print(as_json(found))
        return 0
    if found.offers:
        print(figures_table(found))
    if arguments.explain and found.offers:
        print()
        for part, dollars, how in explained(
            offers_frame(found.offers, found.figures, found.baselines).row(0, named=True)
        ).rows():
            print(f"{part:>15}  {format_usd(int(dollars.scaleb(9))):>14}  {how}")
    for step in found.steps:
        if arguments.explain or step.after < step.before:
            print(f"{step.filter}: {step.before} → {step.after} offers", file=sys.stderr)
    _tell_statuses(found)
    if not rentable and not any(not one.message for one in found.statuses):
        print("no marketplace is configured; try `jupyter gpumarket demo`", file=sys.stderr)
    return 0 if rentable else 3


def _search(arguments: argparse.Namespace) -> OfferSearch:
    return search_of(
        query_of(arguments),
        hours=arguments.hours,
        disk_gib=arguments.disk_gib,
        in_gib=arguments.in_gib,
        out_gib=arguments.out_gib,
        sort=arguments.sort,
        refresh=arguments.refresh,
        limit=arguments.limit,
    )


def _tell_statuses(found: OfferList) -> None:
    for status in found.statuses:
        if not status.ok:
            age = f" (its list is {in_words(status.age_s)} old)" if status.offers else ""
            print(f"warning: {safe(status.message)}{age}", file=sys.stderr)
        elif status.message:
            print(f"{safe(status.marketplace)}: {safe(status.message)}", file=sys.stderr)


def figures_table(found: OfferList) -> str:
    """Offers with the job's price; what cannot be rented is marked."""
    rows = [
        [
            format_usd(offer.price_nusd_hour, places=3),
            format_usd(one.all_in_nusd, places=3),
            f"{offer.gpu_count}× {offer.gpu or offer.gpu_raw or '?'}" if offer.gpu_count else "CPU",
            f"{offer.vram_gib:.0f}" if offer.gpu_count else "0",
            "" if one.saving is None else f"{one.saving:.0%}",
            "" if offer.reliability is None else f"{offer.reliability:.1%}",
            offer.region or offer.country,
            offer.tier.value,
            offer.kind.value.replace("_", "-"),
            offer.marketplace if one.rentable else f"({offer.marketplace})",
            offer.machine_id,
        ]
        for offer, one in zip(found.offers, found.figures, strict=True)
    ]
    headers = ["$/h", "job", "GPU", "VRAM GiB", "saves", "reliable", "region", "tier", "kind", "marketplace", "machine"]
    note = (
        "\n(…): a sample or a public list, not to be rented without an account"
        if any(not one.rentable for one in found.figures)
        else ""
    )
    return text_table(headers, rows) + note


def prices(arguments: argparse.Namespace) -> int:
    """Show how prices were."""
    with connect() as client:
        found = client.prices(PriceQuery(gpu=arguments.gpu, marketplaces=tuple(arguments.marketplace)))
    last_ms = found.points[-1].hour_ms if found.points else 0
    points = [point for point in found.points if point.hour_ms >= last_ms - arguments.days * DAY_MS]
    if arguments.json:
        print(as_json(points))
        return 0
    rows = [
        [
            iso_utc(point.hour_ms)[:13] + "h",
            point.gpu,
            format_usd(point.low_nusd_hour, places=3),
            format_usd(point.middle_nusd_hour, places=3),
            str(point.offers),
            point.kind.replace("_", "-"),
            point.marketplace,
        ]
        for point in points
    ]
    headers = ["hour (UTC)", "GPU", "low $/GPU h", "middle", "offers", "kind", "marketplace"]
    print(text_table(headers, rows) if rows else "no prices are known yet; `jupyter gpumarket offers` collects them")
    return 0


def searches(arguments: argparse.Namespace) -> int:
    """List, save or drop searches that are kept."""
    with connect() as client:
        if arguments.drop:
            views = client.drop_search(arguments.drop)
        elif arguments.save:
            views = client.keep_search(SavedSearch(name=arguments.save, query=query_of(arguments)))
        else:
            views = client.searches()
    if arguments.json:
        print(as_json(views))
        return 0
    rows = [
        [
            view.search.name,
            view.search.query.gpu or "",
            "nothing fits now" if view.alert is None else f"{view.alert.offers} fit",
            "" if view.alert is None else f"{format_usd(view.alert.best.price_nusd_hour)}/h",
            "" if view.alert is None else view.alert.best.marketplace,
        ]
        for view in views
    ]
    print(text_table(["search", "GPU", "found", "best", "marketplace"], rows) if rows else "no search is saved")
    return 0
