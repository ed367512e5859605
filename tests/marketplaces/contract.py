"""What every marketplace must do (`marketplaces.base`): one test class that each adapter's own test file inherits.

A subclass gives the `world` fixture. The adapter in it talks to its marketplace through a `TroubledProxy`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import asyncssh
import pytest

from jupyter_gpumarket.errors import (
    ConfigError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Permanent,
    Temporary,
    Unauthorized,
)
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.models import OfferQuery, Quote, Rental, RentalStatus
from tests.marketplaces.troubled import Trouble, TroubledProxy

PATIENCE_S = 30.0
MEBIBYTE = 1024 * 1024
READS = ("offers", "find", "rentals", "rental", "charges", "balance")


@dataclass
class World:
    """One adapter, its marketplace, and what its tests must know of it. `is_create` recognises the call that costs."""

    market: Marketplace
    proxy: TroubledProxy
    secret: str
    is_create: Callable[[str, str], bool]
    is_release: Callable[[str, str], bool]
    ssh_public_key: str = ""
    calls_balance: bool = True
    calls_charges: bool = True
    tells_price: bool = True
    id_prefix: str = ""

    async def quote(self) -> Quote:
        return await self.market.quote((await self.market.offers(OfferQuery()))[0])

    async def rent(self, label: str, quote: Quote | None = None) -> Rental:
        return await self.market.rent(
            quote or await self.quote(),
            label=label,
            ssh_public_key=self.ssh_public_key,
            deadline_ms=int(time.time() * 1000) + 3_600_000,
        )

    async def until(self, rental_id: str, status: RentalStatus) -> Rental:
        async with asyncio.timeout(PATIENCE_S):
            while (rental := await self.market.rental(rental_id)).status != status:
                await asyncio.sleep(0.05)
        return rental

    async def read(self, name: str) -> object:
        match name:
            case "offers":
                return await self.market.offers(OfferQuery())
            case "find":
                return await self.market.find("nobodys-label")
            case "rentals":
                return await self.market.rentals()
            case "balance":
                return await self.market.balance()
            case _:
                return await getattr(self.market, name)("r0")

    async def release_all(self) -> None:
        for rental in await self.market.rentals():
            await self.market.release(rental.rental_id)
            await self.until(rental.rental_id, RentalStatus.GONE)


def new_public_key() -> str:
    return asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()


def new_label() -> str:
    return "t-" + secrets.token_hex(8)


def everything(_method: str, _path: str) -> bool:
    return True


class MarketplaceContract:
    """Inherit, and give a `world` fixture."""

    async def test_offers_are_whole(self, world: World) -> None:
        """Every offer names its marketplace, is unique, and has an integer price that is not negative."""
        offers = await world.market.offers(OfferQuery())

        assert offers
        assert len({offer.offer_id for offer in offers}) == len(offers)
        for offer in offers:
            assert offer.marketplace == world.market.name
            assert isinstance(offer.price_nusd_hour, int)
            assert offer.price_nusd_hour >= 0
            assert offer.machine_id
            assert abs(offer.seen_ms - time.time() * 1000) < 60_000

    async def test_a_quote_is_firm_and_expires(self, world: World) -> None:
        """A quote is for the offer that was asked for, with an integer price and a time in the future."""
        offer = (await world.market.offers(OfferQuery()))[0]
        quote = await world.market.quote(offer)

        assert (quote.marketplace, quote.offer.offer_id) == (world.market.name, offer.offer_id)
        assert isinstance(quote.price_nusd_hour, int)
        assert quote.expires_ms > time.time() * 1000

    async def test_from_rent_to_gone(self, world: World) -> None:
        """Rent → found by label and listed → running with an address → release → gone, with a final bill."""
        label = new_label()
        quote = await world.quote()
        rental = await world.rent(label, quote)
        found = await world.market.find(label)
        running = await world.until(rental.rental_id, RentalStatus.RUNNING)
        listed = [other.rental_id for other in await world.market.rentals()]
        await world.market.release(rental.rental_id)
        await world.until(rental.rental_id, RentalStatus.GONE)
        await world.market.release(rental.rental_id)
        charges = await world.market.charges(rental.rental_id)

        assert found is not None
        assert (found.rental_id, found.label) == (rental.rental_id, label)
        assert rental.rental_id in listed
        assert running.address is not None
        assert running.price_nusd_hour == (quote.price_nusd_hour if world.tells_price else None)
        assert all(isinstance(charge.amount_nusd, int) and charge.amount_nusd >= 0 for charge in charges)
        assert all(charge.rental_id == rental.rental_id for charge in charges)
        assert [other for other in await world.market.rentals() if other.label == label] == []

    async def test_a_taken_offer_is_gone(self, world: World) -> None:
        """Renting by a quote whose offer somebody else got in between is OfferGone, and nothing is rented."""
        first, second = await world.quote(), await world.quote()
        await world.rent(new_label(), first)
        label = new_label()
        with pytest.raises(OfferGone):
            await world.rent(label, second)

        assert await world.market.find(label) is None

    async def test_what_nobody_knows(self, world: World) -> None:
        """An unknown label is None, an unknown rental is GONE, and releasing it is no error."""
        assert await world.market.find(new_label()) is None
        assert (await world.market.rental("r000000000000")).status == RentalStatus.GONE
        await world.market.release("r000000000000")

    async def test_what_can_be_no_identifier_asks_nothing(self, world: World) -> None:
        """A release of nothing, or of what would be another path, is refused before any call."""
        world.proxy.calls.clear()
        for no_id in ("", "..", "r1/x", "../r1", "r1?all=1", "r1#x", "r 1", "r%2f1", "ré1"):
            with pytest.raises(ConfigError, match=r"is not an? "):
                await world.market.release(world.id_prefix + no_id)

        assert world.proxy.calls == []

    LOST_REPLIES = {
        "connection closed": Trouble(everything, drop=True, after=True),
        "502": Trouble(everything, status=502, body=b"<html>bad gateway</html>", after=True),
        "500": Trouble(everything, status=500, body=b'{"error": "x", "message": "y"}', after=True),
        "not JSON": Trouble(everything, body=b"<html>welcome to the hotel's network</html>", after=True),
        "empty": Trouble(everything, body=b"", after=True),
        "wrong shape": Trouble(everything, body=b'{"rental_id": 7}', after=True),
        "redirect": Trouble(everything, status=302, headers={"Location": "http://127.0.0.1:1/"}),
    }

    @pytest.mark.parametrize("trouble", LOST_REPLIES.values(), ids=LOST_REPLIES)
    async def test_a_lost_reply_to_rent_is_of_unknown_outcome(self, world: World, trouble: Trouble) -> None:
        """Whatever became of the reply, the create call was made once and not repeated; its label finds the truth."""
        label, quote = new_label(), await world.quote()
        world.proxy.calls.clear()
        world.proxy.trouble = Trouble(**{**trouble.__dict__, "matches": world.is_create})
        with pytest.raises(OutcomeUnknown):
            await world.rent(label, quote)
        world.proxy.trouble = None
        found = await world.market.find(label)

        assert sum(1 for call in world.proxy.calls if world.is_create(*call)) == 1
        assert (found is not None) == trouble.after

    @pytest.mark.parametrize(
        ("status", "error"), [(401, Unauthorized), (403, Unauthorized), (402, InsufficientFunds), (422, Permanent)]
    )
    async def test_a_refused_rent_says_why(self, world: World, status: int, error: type[Exception]) -> None:
        """Clear refusals of the create call are told as what they are: nothing was rented."""
        quote = await world.quote()
        world.proxy.trouble = Trouble(world.is_create, status=status, body=b'{"message": "no"}')
        with pytest.raises(error) as raised:
            await world.rent(new_label(), quote)

        assert world.market.name in str(raised.value)

    async def test_an_unanswered_release_is_of_unknown_outcome_and_can_be_repeated(self, world: World) -> None:
        """The reply to a release is lost: OutcomeUnknown; asked again, the rental ends."""
        rental = await world.rent(new_label())
        world.proxy.trouble = Trouble(world.is_release, drop=True)
        with pytest.raises(OutcomeUnknown):
            await world.market.release(rental.rental_id)
        world.proxy.trouble = None
        await world.market.release(rental.rental_id)
        await world.until(rental.rental_id, RentalStatus.GONE)

    FAULTS = {
        "connection closed": (Trouble(everything, drop=True), Temporary),
        "503": (Trouble(everything, status=503, body=b"later"), Temporary),
        "not JSON": (Trouble(everything, body=b"\xff\xfe<html>"), Temporary),
        "wrong shape": (Trouble(everything, body=b"[[[[[]]]]]"), Temporary),
        "deep": (Trouble(everything, body=b"[" * 100_000), Temporary),
        "huge": (Trouble(everything, body=b" " * (33 * 1024 * 1024)), Temporary),
        "redirect": (Trouble(everything, status=307, headers={"Location": "http://127.0.0.1:1/"}), Temporary),
        "401": (Trouble(everything, status=401, body=b"{}"), Unauthorized),
        "429": (Trouble(everything, status=429, body=b"{}", headers={"Retry-After": "7"}), Temporary),
    }

    @pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
    async def test_reads_fail_in_known_ways(self, world: World, fault: tuple[Trouble, type[Exception]]) -> None:
        """Every read turns a fault into one of the contract's errors, with the marketplace's name in it."""
        world.proxy.trouble, error = fault
        # A huge reply takes its time, and what refuses it is one place for all calls.
        for name in READS[:1] if len(world.proxy.trouble.body) > MEBIBYTE else READS:
            if (name, True) in (("balance", not world.calls_balance), ("charges", not world.calls_charges)):
                continue
            with pytest.raises(error) as raised:
                await world.read(name)
            assert world.market.name in str(raised.value)
            assert len(str(raised.value)) < 2000
            if world.proxy.trouble.status == 429:
                assert isinstance(raised.value, Temporary)
                assert raised.value.retry_after_s == 7.0

    async def test_the_key_shows_nowhere(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        """An answer that echoes the key, a log at DEBUG, a repr: the key is in none of what comes out."""
        caplog.set_level(logging.DEBUG)
        world.proxy.trouble = Trouble(everything, status=400, body=f"you sent {world.secret}".encode())
        with pytest.raises(Permanent) as raised:
            await world.market.offers(OfferQuery())
        shown = [str(raised.value), repr(raised.value), repr(world.market), str(vars(world.market)), caplog.text]

        assert not any(world.secret in text for text in shown)
        assert not any(world.secret in path for _, path in world.proxy.calls)
