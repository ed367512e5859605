"""Renting on first use: the best offer with its price and worst case, a question, and the phases until it is ready."""

from __future__ import annotations

import secrets
from typing import NoReturn

from jupyter_gpumarket.api import LeaseView, MarketplaceStatus, OfferList, OfferSearch
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.errors import (
    BadRequest,
    BudgetExceeded,
    ConfigError,
    GpuMarketError,
    LeaseFailed,
    NoMatchingOffer,
    StillRunning,
)
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseRequest, LeaseState, Offer, Owner
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.notebook.costline import CostLine
from jupyter_gpumarket.notebook.interrupts import InterruptWatch
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.options import Wish
from jupyter_gpumarket.notebook.stage import Stage, Table

WAIT_S = 0.5
CANCEL_PATIENCE_S = 20.0

PHASE_WORDS = {
    LeaseState.WISHED: "wish",
    LeaseState.QUOTING: "quote",
    LeaseState.RENTING: "contract",
    LeaseState.UNCONFIRMED: "contract (no answer: looking whether it happened)",
    LeaseState.BOOTING: "boot",
    LeaseState.LINKING: "link",
    LeaseState.PREPARING: "set-up",
    LeaseState.PROBING: "probe",
    LeaseState.READY: "ready",
}


class Cancelled(KeyboardInterrupt):
    """Ctrl-C while renting: the node was given back."""


def best_offers(notebook: Notebook, wish: Wish, limit: int = 5) -> OfferList:
    """The offers that fit, cheapest for the whole job first, as the broker will take them.

    Raises:
        NoMatchingOffer: none; names the filter that removed the last ones.
        ConfigError: no marketplace is set up, or none answers; says how to start one.
    """
    found = notebook.client.offers(
        OfferSearch(query=wish.query, hours=wish.max_s / 3600, sort="cost_to_finish", limit=limit)
    )
    if not found.offers:
        refuse_nothing(found)
    return found


def refuse_nothing(found: OfferList) -> NoReturn:
    """Say why a search found nothing.

    Raises:
        NoMatchingOffer: names the filter that removed the last ones.
        ConfigError: no marketplace is set up, or none answers.
    """
    if not found.statuses:
        raise ConfigError(
            "no marketplace is set up; `jupyter gpumarket demo` starts one on this machine, "
            "`jupyter gpumarket host` offers a machine of your own, `%gpu doctor` tells what is missing"
        )
    if not any(status.ok for status in found.statuses):
        told = "; ".join(trouble_words(status) for status in found.statuses)
        raise ConfigError(f"no marketplace answers ({told}); `%gpu doctor` looks closer")
    raise NoMatchingOffer(_why_none(found))


def trouble_words(status: MarketplaceStatus) -> str:
    """Which marketplace does not answer, and why; errors of adapters begin with its name already."""
    return f"{status.marketplace}: {one_line(status.message.removeprefix(f'{status.marketplace}: '))}"


def worst_case_nusd(wish: Wish, offers: list[Offer]) -> int:
    """What the lease can cost at most: its budget, or its longest time at the dearest price it may come to."""
    dearest = wish.query.max_price_nusd_hour or max(offer.price_nusd_hour for offer in offers)
    return min(wish.budget_nusd, cost_nusd(dearest, wish.max_s * 1000))


def rent(notebook: Notebook, stage: Stage, line: CostLine, wish: Wish, owner: Owner) -> Lease:
    """Show, ask, rent, wait.

    Raises:
        NoMatchingOffer, ConfigError, BudgetExceeded: nothing was rented.
        LeaseFailed: no offer led to a ready node; tells how each try ended.
        Cancelled: Ctrl-C; what had been rented was given back.
        StillRunning: Ctrl-C, and giving back is not confirmed yet.
    """
    found = best_offers(notebook, wish)
    _refuse_small_budget(wish, found.offers[0])
    _consent(stage, wish, found.offers)
    request = LeaseRequest(
        request_id=secrets.token_hex(16),
        query=wish.query,
        budget_nusd=wish.budget_nusd,
        max_s=wish.max_s,
        owner=owner,
        name=wish.name,
        trusted=wish.trust,
        grace_s=notebook.settings.grace_s,
    )
    with InterruptWatch() as watch:
        view = watch.wait(lambda: notebook.client.wish(request))
        if view is not None:
            view = _wait_ready(notebook, line, watch, view)
    if view is None:
        raise _cancel(notebook, stage, request)
    notebook.use(view.lease.lease_id)
    return view.lease


def wait_ready(notebook: Notebook, line: CostLine, lease: Lease) -> Lease:
    """Wait for a lease that is still on its way (after a kernel restart, say). Ctrl-C only stops the waiting."""
    view = notebook.client.lease(lease.lease_id)
    with InterruptWatch() as watch:
        ready = _wait_ready(notebook, line, watch, view)
    if ready is None:
        raise Cancelled("stopped waiting; the node goes on booting, `%gpu release` gives it back")
    return ready.lease


def offer_words(offer: Offer) -> str:
    """One offer in a sentence."""
    gpu = one_line(offer.gpu or offer.gpu_raw, 40)
    what = f"{offer.gpu_count} × {gpu} {offer.vram_gib:g} GB" if offer.gpu_count else f"CPU, {offer.cpu_cores} cores"
    where = f", {one_line(offer.region or offer.country, 40)}" if offer.region or offer.country else ""
    return f"{what} at {one_line(offer.marketplace, 30)}{where}, {format_usd(offer.price_nusd_hour)}/h"


def offers_table(offers: list[Offer], title: str = "") -> Table:
    """Offers to be looked at."""
    rows = tuple(
        (
            one_line(offer.gpu or offer.gpu_raw or "-", 40) if offer.gpu_count else "CPU",
            str(offer.gpu_count or "-"),
            f"{offer.vram_gib:g}" if offer.gpu_count else "-",
            str(offer.cpu_cores or "-"),
            f"{offer.memory_gib:.0f}" if offer.memory_gib else "-",
            one_line(offer.region or offer.country or "-", 30),
            offer.tier.value,
            f"{format_usd(offer.price_nusd_hour)}",
            one_line(offer.marketplace, 30),
        )
        for offer in offers
    )
    headers = ("GPU", "count", "VRAM GiB", "cores", "memory GiB", "region", "tier", "per hour", "marketplace")
    return Table(title=title, headers=headers, rows=rows, right=frozenset({1, 2, 3, 4, 7}))


def phases_text(lease: Lease, now_ms: int, step: str = "") -> str:
    """`quote 0.2 s → contract 0.1 s → boot 12 s …`"""
    entered = sorted((at_ms, state) for state, at_ms in lease.phases.items() if state in set(PHASE_WORDS))
    parts = []
    for index, (at_ms, state) in enumerate(entered):
        end_ms = entered[index + 1][0] if index + 1 < len(entered) else now_ms
        word = PHASE_WORDS[LeaseState(state)]
        is_last = index + 1 == len(entered)
        if state == LeaseState.READY:
            parts.append(word)
        else:
            detail = f" ({one_line(step, 60)})" if is_last and step else ""
            parts.append(f"{word}{detail} {in_words(max(0, end_ms - at_ms) / 1000)}")
    tries = f"try {len(lease.attempts)}: " if len(lease.attempts) > 1 else ""
    return tries + (" → ".join(parts) or "asking")


def _wait_ready(notebook: Notebook, line: CostLine, watch: InterruptWatch, view: LeaseView) -> LeaseView | None:
    """The lease once it is ready; None when Ctrl-C came."""
    while view.lease.state not in (LeaseState.READY, LeaseState.UNREACHABLE):
        if view.lease.state in ENDED_STATES or view.lease.state == LeaseState.DRAINING:
            raise _why_failed(view.lease)
        current = view
        waited = watch.wait(
            lambda: notebook.client.lease(current.lease.lease_id, after_seq=current.seq, wait_s=WAIT_S)  # noqa: B023
        )
        if waited is None:
            watch.news()
            return None
        view = waited
        head = one_line(view.lease.name, 60) or "renting"
        line.live(f"{head} · {phases_text(view.lease, notebook.clock.now_ms(), _step(view))}")
    line.live(f"{one_line(view.lease.name, 60)} · {phases_text(view.lease, notebook.clock.now_ms())}")
    return view


def _step(view: LeaseView) -> str:
    """What the node does within its phase: the set-up step that runs, or why the link is not up yet."""
    if view.node is None:
        return ""
    if view.lease.state is LeaseState.LINKING and view.node.link != "up":
        return view.node.link_detail
    running = [step.name for step in view.node.steps if step.state == "running"]
    return running[-1] if running else ""


def _cancel(notebook: Notebook, stage: Stage, request: LeaseRequest) -> BaseException:
    """Give back whatever the wish may have led to, and say what became of it.

    The interrupted call may reach the broker later than any look at its leases. So the wish is made again: the same
    request is one lease, and that one is released for certain.
    """
    try:
        wished = notebook.client.wish(request)
    except (BudgetExceeded, BadRequest):
        return Cancelled("cancelled; nothing was rented")
    view = notebook.client.release(wished.lease.lease_id, reason="cancelled by the user while renting")
    deadline = notebook.clock.monotonic_s() + CANCEL_PATIENCE_S
    while view.lease.state not in ENDED_STATES and notebook.clock.monotonic_s() < deadline:
        view = notebook.client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=1.0)
    if view.lease.state not in ENDED_STATES:
        return StillRunning(
            f"cancelled, but giving {view.lease.name} back is not confirmed yet and it may still bill; "
            "it is tried again until the marketplace confirms, `%gpu status` shows it"
        )
    stage.say(f"cancelled; {view.lease.name} was given back, it cost {format_usd(view.cost_nusd)}")
    return Cancelled("cancelled while renting; the node was given back")


def _consent(stage: Stage, wish: Wish, offers: list[Offer]) -> None:
    best = offers[0]
    worst = worst_case_nusd(wish, offers)
    limits = f"budget {format_usd(wish.budget_nusd)}, at most {in_words(wish.max_s)}"
    summary = f"rent {offer_words(best)}; {limits}; worst case {format_usd(worst, places=2)}"
    ask(stage, summary, yes=wish.yes)


def ask(stage: Stage, summary: str, *, yes: bool) -> None:
    """Say what would be rented, and ask unless the user has agreed already.

    Raises:
        Cancelled: the answer was no. ConfigError: nobody can be asked here.
    """
    if yes:
        stage.say(summary)
        return
    try:
        answer = stage.ask(f"{summary}. Rent it? [y/N] ")
    except KeyboardInterrupt:
        raise Cancelled("not rented; nothing was spent") from None
    if answer is None:
        raise ConfigError(
            f"would {summary}, but nobody can be asked here; allow it with `%%gpu --yes`, "
            "or for good with `ask = false` in config.toml (JUPYTER_GPUMARKET_ASK=false)"
        )
    if not answer:
        raise Cancelled("not rented; nothing was spent")


def _refuse_small_budget(wish: Wish, best: Offer) -> None:
    """A budget that does not even cover what the marketplace charges at least."""
    least_ms = max(best.billing.minimum_s, best.billing.quantum_s, 60) * 1000
    least = cost_nusd(best.price_nusd_hour, least_ms) + best.billing.fee_nusd
    if wish.budget_nusd < least:
        raise BudgetExceeded(
            f"the budget of {format_usd(wish.budget_nusd)} is too small: the cheapest fitting offer "
            f"({offer_words(best)}) costs at least {format_usd(least)}; raise --budget or look for a cheaper one"
        )


def _why_none(found: OfferList) -> str:
    total = sum(status.offers for status in found.statuses)
    last = next((step for step in found.steps if step.before and not step.after), None)
    if total == 0:
        return "no marketplace offers a machine right now; try again later, or add one with `jupyter gpumarket host`"
    if last is None:
        return f"none of {total} offers fits; `%gpu offers` shows them"
    return (
        f"no offer fits: '{last.filter}' removed the last {last.before} of {total} offers; "
        "loosen it, `%gpu offers` shows what there is"
    )


def _why_failed(lease: Lease) -> GpuMarketError:
    reason = one_line(lease.reason, 900) or f"the lease ended in {lease.state.value}"
    for attempt in lease.attempts:
        if attempt.reason and attempt.reason != lease.reason:
            reason += f"; {one_line(attempt.marketplace, 30)} {one_line(attempt.offer_id, 40)}: "
            reason += one_line(attempt.reason, 400)
    return LeaseFailed(f"no node: {reason}")
