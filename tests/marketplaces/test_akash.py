"""The Akash adapter against its stand-in, which rents hosts of a real pool."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from jupyter_gpumarket.config import Secret
from jupyter_gpumarket.errors import (
    ConfigError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Temporary,
    Unauthorized,
)
from jupyter_gpumarket.marketplaces.akash import AkashMarketplace, AkashOptions
from jupyter_gpumarket.marketplaces.akash_market import spelled
from jupyter_gpumarket.marketplaces.akash_meaning import address_of, judge_accept, reclaim_of, status_of
from jupyter_gpumarket.marketplaces.akash_money import BlockTime, plain_balance
from jupyter_gpumarket.marketplaces.akash_replies import Coin, Holding, LeaseRow, gib
from jupyter_gpumarket.marketplaces.akash_sdl import ENTRYPOINT, Machine, sdl
from jupyter_gpumarket.models import NodeAddress, OfferQuery, RentalStatus, Tier
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.offers.gpus import canonical
from jupyter_gpumarket.simulator.akash import AkashStandIn
from jupyter_gpumarket.simulator.faults import Fault
from tests.marketplaces.contract import MarketplaceContract, World, new_label
from tests.marketplaces.edge import TruthfulFaults
from tests.marketplaces.troubled import Trouble
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.standing import KEY, Standing, standing


def adapter(url: str, key: Secret) -> AkashMarketplace:
    return AkashMarketplace(AkashOptions(url=url, calls_per_s=1000, bid_wait_s=1.0, bid_poll_s=0.05), key)


def is_create(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1/leases"


def is_auction(method: str, path: str) -> bool:
    return method == "POST" and path == "/v1/deployments"


def is_release(method: str, path: str) -> bool:
    return method == "DELETE"


@pytest.fixture(scope="module")
def running() -> Any:
    """One pool for all tests here."""
    with pools() as start:
        yield start(hosts=1)


@pytest.fixture
async def stand(running: RunningPool) -> AsyncIterator[Standing]:
    async with standing(running, AkashStandIn, adapter, is_create, is_release) as up:
        yield up


@pytest.fixture
async def world(stand: Standing) -> World:
    return stand.world


class TestAkash(MarketplaceContract):
    """Akash keeps the contract."""


class TestAkashFaults(TruthfulFaults):
    """Whatever the stand-in does, the adapter tells it as what it is."""


async def open_auctions(stand: Standing) -> list[str]:
    """Deployments of the account that are open, whoever made them."""
    return [rental.rental_id for rental in await stand.market.rentals()]


async def until_no_auction(stand: Standing) -> None:
    async with asyncio.timeout(30):
        while await open_auctions(stand):
            await asyncio.sleep(0.05)


# ── offers, quotes, money ────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_offer_is_of_one_provider_and_indicative(stand: Standing) -> None:
    """The listed price has a margin over what will be bid; the quote's is the bid, with its unit and its block time."""
    (offer,) = await stand.market.offers(OfferQuery())
    quote = await stand.market.quote(offer)

    assert (offer.tier, offer.gpu_count) == (Tier.DATACENTER, 0)
    assert offer.price_nusd_hour > usd("0.35")
    assert abs(quote.price_nusd_hour - usd("0.35")) < 10
    assert quote.offer.native is not None
    assert quote.offer.native.currency == "uact"
    assert abs(Decimal(quote.offer.native.amount_hour) - 350_000) < Decimal("0.01")
    assert "5.883 s a block" in quote.offer.native.source


async def test_gpus_are_offered_by_number_as_far_as_a_provider_has_them_free(stand: Standing) -> None:
    """Model, memory and count of a provider's GPUs, at its own last bid and not at the market's."""
    stand.arm(Fault.WRONG_GPU, times=None)
    offers = await stand.market.offers(OfferQuery())
    (card,) = [offer for offer in offers if offer.gpu_count]

    assert (card.gpu_raw, card.gpu_count, card.vram_gib) == ("rtx4090", 1, 24.0)
    assert len({offer.machine_id for offer in offers}) == 1


@pytest.mark.parametrize(
    ("model", "interface", "gib_each", "expected"),
    [("h100", "SXM5", 80, "H100 SXM"), ("a100", "PCIe", 40, "A100 PCIe 40GB"), ("rtx4090", "PCIe", 24, "RTX 4090")],
)
def test_cards_are_spelled_so_that_they_are_known(model: str, interface: str, gib_each: int, expected: str) -> None:
    """Model and interface apart become one canonical name."""
    assert canonical(spelled(model, interface), gib_each) == expected


async def test_listing_needs_no_key(stand: Standing) -> None:
    """What is public is read without an account."""
    visitor = adapter(stand.world.proxy.url, Secret(""))
    offers = await visitor.offers(OfferQuery())
    with pytest.raises(Unauthorized):
        await visitor.rentals()
    await visitor.aclose()

    assert offers


async def test_an_auction_that_is_not_taken_is_closed(stand: Standing) -> None:
    """Neither a quote nor a bid that never came leaves a deployment, whose deposit would be locked up."""
    (offer,) = await stand.market.offers(OfferQuery())
    await stand.market.quote(offer)
    await until_no_auction(stand)
    gone = msgspec.structs.replace(offer, machine_id="akash1nobody")
    with pytest.raises(OfferGone, match="no bid"):
        await stand.market.quote(gone)
    await until_no_auction(stand)


async def test_an_auction_whose_reply_was_lost_is_found_and_closed(stand: Standing) -> None:
    """It is looked for by its name."""
    (offer,) = await stand.market.offers(OfferQuery())
    stand.world.proxy.trouble = Trouble(is_auction, drop=True, after=True)
    with pytest.raises(Temporary, match="may not have begun"):
        await stand.market.quote(offer)
    stand.world.proxy.trouble = None

    assert await open_auctions(stand)
    await until_no_auction(stand)


async def test_an_auction_of_ours_that_was_never_leased_is_no_rental(stand: Standing) -> None:
    """The reply to the auction under the label is lost: nothing can bill yet, and looking for the label closes it."""
    label, quote = new_label(), await stand.world.quote()
    await until_no_auction(stand)
    stand.world.proxy.trouble = Trouble(is_auction, drop=True, after=True)
    with pytest.raises(OutcomeUnknown):
        await stand.world.rent(label, quote)
    stand.world.proxy.trouble = None
    (left,) = await stand.market.rentals()

    assert (left.label, left.status) == (label, RentalStatus.FAILED)
    assert await stand.market.find(label) is None
    assert await stand.market.rentals() == []


async def test_a_dearer_bid_is_not_taken(stand: Standing) -> None:
    """Between quote and rent a bid may rise: then nothing is rented, and no auction stays open."""
    quote = await stand.world.quote()
    dear = msgspec.structs.replace(quote, price_nusd_hour=quote.price_nusd_hour // 2)
    with pytest.raises(OfferGone, match="no bid"):
        await stand.world.rent(new_label(), dear)
    await until_no_auction(stand)

    assert stand.yard.rentals == {}


async def test_the_bill_is_of_whole_blocks(stand: Standing) -> None:
    """While it runs the bill grows by the block and is not final; closed it is what the escrow has paid."""
    rental = await stand.world.rent(new_label())
    await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (open_bill,) = await stand.market.charges(rental.rental_id)
    await stand.market.release(rental.rental_id)
    (closed,) = await stand.market.charges(rental.rental_id)
    gone = await stand.market.rental(rental.rental_id)
    per_block = Decimal(350_000) * Decimal("5.883") / 3600
    blocks = round((closed.end_ms - closed.start_ms) / 5883)
    balance = await stand.market.balance()

    assert (gone.billed_from_ms, gone.ended_ms) == (closed.start_ms, closed.end_ms)
    assert not open_bill.final
    assert closed.final
    assert closed.native_currency == "uact"
    assert abs(Decimal(closed.native_amount) / per_block - blocks) < Decimal("0.00001")
    assert balance is not None
    assert abs(balance.amount_nusd + closed.amount_nusd - usd(100)) <= 1000


async def test_the_own_timer_is_set_and_put_off(stand: Standing) -> None:
    """Akash's timer is given whole hours at the create call; an extension raises it by two days at most each time."""
    rental = await stand.world.rent(new_label())
    stand.world.proxy.calls.clear()
    later_ms = int(time.time() * 1000) + 60 * 3_600_000
    await stand.market.set_deadline(rental.rental_id, later_ms)
    await stand.market.set_deadline(rental.rental_id, later_ms - 3_600_000)

    assert stand.market.capabilities.own_timer
    assert stand.world.proxy.count("PATCH") == 2


@pytest.mark.parametrize("seconds", ["0", "61", "six", "NaN", "-6"])
def test_a_block_time_that_is_none_is_refused(seconds: str) -> None:
    """Else every price would be wrong."""
    with pytest.raises(ConfigError, match="block_s"):
        AkashMarketplace(AkashOptions(block_s=seconds), Secret(KEY))


@pytest.mark.parametrize(
    ("amount", "expected"), [("4262.041502000000000000", 2_608_082_511), ("0", 0), ("0.000000000000000001", 1)]
)
def test_a_bid_becomes_dollars_without_floats(amount: str, expected: int) -> None:
    """uact a block, times blocks an hour, rounded up to the nano-dollar."""
    assert BlockTime("5.883").nusd_hour(Coin(denom="uact", amount=Decimal(amount))) == expected


@pytest.mark.parametrize(("denom", "amount"), [("uakt", "5"), ("uact", "-1"), ("uact", "NaN"), ("uact", "1e40")])
def test_a_price_in_another_coin_is_none(denom: str, amount: str) -> None:
    """What it is worth in dollars is not told, so it is not guessed."""
    with pytest.raises(Temporary):
        BlockTime("6").nusd_hour(Coin(denom=denom, amount=Decimal(amount)))


@pytest.mark.parametrize(
    ("told", "unit", "dollars"),
    [("42.17", "auto", "42.17"), ("42170000", "auto", "42.17"), ("42", "usd", "42"), ("42", "uact", "0.000042")],
)
def test_a_balance_is_read_in_either_unit(told: str, unit: str, dollars: str) -> None:
    """The Console's code and its documentation differ by a factor of a million."""
    assert plain_balance(Decimal(told), unit).amount_nusd == usd(dollars)


# ── what is asked for ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_sdl_asks_for_one_machine_with_our_own_ssh_server() -> None:
    """GPU spelled as the SDL wants it, the label as the group's name, a ceiling in whole uact, only port 22."""
    machine = Machine(cpu_cores=4, memory_gib=16, disk_gib=32, gpu_count=2, model="h100", ram="80Gi", interface="SXM5")
    text = sdl(
        machine, name="gpum-x", image="img", ssh_public_key=" ssh-ed25519 AA x\n", most_uact_block=Decimal("7.1")
    )
    asked = json.loads(text)
    node = asked["services"]["node"]
    vendor = asked["profiles"]["compute"]["node"]["resources"]["gpu"]["attributes"]["vendor"]

    assert vendor == {"nvidia": [{"model": "h100", "ram": "80Gi", "interface": "sxm"}]}
    assert asked["profiles"]["placement"] == {"gpum-x": {"pricing": {"node": {"denom": "uact", "amount": 8}}}}
    assert [port["port"] for port in node["expose"]] == [22]
    assert node["env"] == ["GPUMARKET_PUBLIC_KEY=ssh-ed25519 AA x"]
    assert node["args"] == [ENTRYPOINT]
    assert "tee" not in node["params"]
    assert "$(" not in ENTRYPOINT


def test_confidential_computing_is_asked_for_on_wish() -> None:
    """Only then is an offer in the tier of confidential computing."""
    machine = Machine(cpu_cores=1, memory_gib=1, disk_gib=1)
    text = sdl(machine, name="x", image="img", ssh_public_key="k", most_uact_block=Decimal(1), tee="cpu-gpu")

    assert json.loads(text)["services"]["node"]["params"]["tee"] == "cpu-gpu"
    assert AkashMarketplace(AkashOptions(tee="cpu-gpu"), Secret(KEY)).capabilities.tee
    assert not AkashMarketplace(AkashOptions(), Secret(KEY)).capabilities.tee


# ── odd answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

ACCEPTS: dict[str, tuple[int, bytes, type[Exception] | None]] = {
    "the bid is over": (400, b"Cannot create lease: The selected bid is no longer open.", OfferGone),
    "the order is over": (400, b"order has already been matched or closed", OfferGone),
    "not audited": (403, b"Provider not authorized.", OfferGone),
    "provider away, no lease": (502, b'{"code": "provider_unreachable"}', OfferGone),
    "leased, and not started": (502, b'{"code": "manifest_not_delivered"}', OutcomeUnknown),
    "no money": (402, b'{"code": "insufficient_balance"}', InsufficientFunds),
    "no money, on the chain": (400, b'{"message": "Insufficient funds"}', InsufficientFunds),
    "a new account": (409, b'{"code": "wallet_provisioning"}', Temporary),
    "nonsense": (400, b'{"code": "bad_request", "message": "no"}', None),
    "somebody in between": (502, b"<html>bad gateway</html>", None),
}


@pytest.mark.parametrize("case", ACCEPTS.values(), ids=ACCEPTS)
def test_what_a_bid_that_was_not_accepted_means(case: tuple[int, bytes, type[Exception] | None]) -> None:
    """Akash says by one status several things; a lease whose container was not started bills all the same."""
    status, content, error = case

    assert judge_accept(status, content) is error


@pytest.mark.parametrize("code", ["provider_unreachable", "manifest_not_delivered"])
async def test_only_a_bid_that_made_no_lease_is_gone(stand: Standing, code: str) -> None:
    """Both are 502: after the one nothing bills and its auction is closed, after the other the label must tell."""
    quote = await stand.world.quote()
    body = msgspec.json.encode({"code": code})
    stand.world.proxy.trouble = Trouble(is_create, status=502, body=body)
    with pytest.raises(OfferGone if code == "provider_unreachable" else OutcomeUnknown):
        await stand.world.rent(new_label(), quote)
    if code == "provider_unreachable":
        await until_no_auction(stand)


async def test_a_lease_of_something_else_is_none(world: World) -> None:
    """An answer that is not about the deployment that was asked for leaves the outcome unknown."""
    quote = await world.quote()
    other = {"data": {"deployment": {"id": {"owner": "a", "dseq": "7"}, "state": "active"}}}
    world.proxy.trouble = Trouble(is_create, body=msgspec.json.encode(other))
    with pytest.raises(OutcomeUnknown, match="without a lease"):
        await world.rent(new_label(), quote)


LEASE = {
    "id": {"owner": "o", "dseq": "1", "gseq": 1, "oseq": 1, "provider": "akash1p", "bseq": 0},
    "state": "active",
    "price": {"denom": "uact", "amount": "1.000000000000000000"},
    "created_at": "5",
    "closed_on": "0",
}
RECLAIMED = "lease_closed_reason_decommission"
IN_UAKT = {"price": {"denom": "uakt", "amount": "1.000000000000000000"}}
UP = {"services": {"node": {"name": "node", "available": 1, "uris": None}},
      "forwarded_ports": {"node": [{"host": "p.example", "port": 22, "externalPort": 31877, "proto": "TCP"}]},
      "ips": None}  # fmt: skip
STATES: dict[str, tuple[dict[str, Any], RentalStatus]] = {
    "up": ({"status": UP}, RentalStatus.RUNNING),
    "being taken back": ({"state": "reclaiming", "status": UP}, RentalStatus.RUNNING),
    "the provider cannot be asked": ({"status": None}, RentalStatus.UNKNOWN),
    "no service yet": ({"status": {"services": None, "forwarded_ports": None}}, RentalStatus.PENDING),
    "not available yet": ({"status": UP | {"services": {"node": {"available": 0}}}}, RentalStatus.PENDING),
    "no port": ({"status": UP | {"forwarded_ports": None}}, RentalStatus.PENDING),
    "null for its ports": ({"status": UP | {"forwarded_ports": {"node": None}}}, RentalStatus.PENDING),
    "port 0": ({"status": UP | {"forwarded_ports": {"node": [{"port": 22, "host": "p"}]}}}, RentalStatus.PENDING),
    "closed by the provider": ({"state": "closed", "reason": "lease_closed_reason_unstable"}, RentalStatus.FAILED),
    "escrow empty": ({"state": "insufficient_funds"}, RentalStatus.FAILED),
}


@pytest.mark.parametrize("case", STATES.values(), ids=STATES)
def test_a_lease_is_read_as_what_it_is(case: tuple[dict[str, Any], RentalStatus]) -> None:
    """Any part of the provider's answer may be null; only an address that answers makes it run."""
    changed, expected = case
    whole = {"deployment": {"id": {"owner": "o", "dseq": 1}, "state": "active"}, "leases": [LEASE | changed]}
    holding = msgspec.convert(whole, Holding)
    assert holding.leases is not None
    status, detail = status_of(holding, holding.leases[0])
    address = address_of(holding.leases[0])

    assert status is expected
    assert (address == NodeAddress(host="p.example", port=31877, user="root")) == (status is RentalStatus.RUNNING)
    assert detail or status is RentalStatus.RUNNING


@pytest.mark.parametrize(
    ("changed", "ends_ms"),
    [
        ({}, None),
        ({"state": "reclaiming"}, None),
        ({"state": "reclaiming", "reclamation": {"deadline": 0, "reason": ""}}, None),
        ({"state": "reclaiming", "reclamation": {"deadline": "1797700000", "reason": RECLAIMED}}, 1_797_700_000_000),
        ({"state": "active", "reclamation": {"deadline": 1797700000, "reason": RECLAIMED}}, None),
    ],
)
def test_a_reclamation_is_a_notice(changed: dict[str, Any], ends_ms: int | None) -> None:
    """While a lease is being reclaimed its deadline is passed on, in words; a deadline that is not told is none."""
    told, why = reclaim_of(msgspec.convert(LEASE | changed, LeaseRow))

    assert told == ends_ms
    assert why == ("the provider takes its machine back (decommission)" if ends_ms else "")


async def test_a_lease_in_another_coin_does_not_hide_the_others(world: World) -> None:
    """Somebody's old deployment on the account, priced in uakt, is listed without a price."""
    old = {"deployment": {"id": {"owner": "o", "dseq": "1"}, "state": "active"}, "leases": [LEASE | IN_UAKT]}
    listing = {"data": {"deployments": [old], "pagination": {"hasMore": False}}}
    chain = {"deployments": [{"deployment": old["deployment"], "groups": [{"group_spec": {"name": "dcloud"}}]}]}
    answers = {"/v1/deployments": listing, "/akash/deployment/v1beta4/deployments/list": chain}
    for path, body in answers.items():
        world.proxy.answers[path] = msgspec.json.encode(body)
    (rental,) = await world.market.rentals()

    assert (rental.label, rental.price_nusd_hour) == ("dcloud", None)
    assert await world.market.find(new_label()) is None


@pytest.mark.parametrize(("text", "expected"), [("80Gi", 80.0), ("", 0.0), ("24 GB", 24.0), ("much", 0.0)])
def test_the_memory_of_a_card(text: str, expected: float) -> None:
    """Nominal, as everybody sells it."""
    assert gib(text) == expected


async def test_only_the_consoles_own_404_means_gone(world: World) -> None:
    """That of somebody in between is no proof that a deployment has ended."""
    rental = await world.rent(new_label())
    world.proxy.trouble = Trouble(lambda m, p: True, status=404, body=b"<html>not here</html>")
    with pytest.raises(Temporary):
        await world.market.rental(rental.rental_id)
    with pytest.raises(Temporary):
        await world.market.release(rental.rental_id)


async def test_a_label_is_not_absent_while_a_name_is_unknown(world: World) -> None:
    """The chain's listing lags behind the Console's: then nobody can say that a label is not there."""
    await world.rent(new_label())
    body = b'{"deployments": [], "pagination": {"next_key": null, "total": "0"}}'
    world.proxy.trouble = Trouble(lambda m, p: p.startswith("/akash/"), body=body)
    with pytest.raises(Temporary, match="does not tell the name"):
        await world.market.find(new_label())


@pytest.mark.parametrize(("field", "value"), [("models", 3), ("vendor", 7), ("providersWithBestBid", "x")])
async def test_nonsense_in_the_market_is_named(world: World, field: str, value: Any) -> None:
    """A field that does not fit is an error with its name, never an offer."""
    row = {"vendor": "nvidia", "model": "h100", "ram": "80Gi", "interface": "SXM5", field: value}
    body = {"models": [row]} if field != "models" else {"models": value}
    world.proxy.trouble = Trouble(lambda m, p: "gpu-prices" in p, body=msgspec.json.encode(body))
    with pytest.raises(Temporary, match=field):
        await world.market.offers(OfferQuery())


async def test_the_port_may_change(stand: Standing) -> None:
    """A container that was started anew answers on another port; the next look tells it."""
    rental = await stand.world.rent(new_label())
    before = await stand.world.until(rental.rental_id, RentalStatus.RUNNING)
    (held,) = stand.yard.rentals.values()
    await stand.yard.rebind(held)
    after = await stand.market.rental(rental.rental_id)

    assert before.address is not None
    assert after.address is not None
    assert before.address.port != after.address.port
