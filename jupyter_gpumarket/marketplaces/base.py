"""The contract of a marketplace. One file each in this folder fulfils it; everything above knows only this.

What a caller may rely on:
- Calls raise `errors.Temporary`, `Permanent`, `Unauthorized`, `InsufficientFunds`, `OfferGone` or `OutcomeUnknown`
  and nothing else (besides cancellation). Only `rent` and `release` raise `OutcomeUnknown`.
- Replies are decoded with a schema; one that does not fit raises `Temporary` and names marketplace, field and content.
- A rental that the marketplace will end by itself has `ends_ms` and `ends_why`, as soon as it says so; without its word
  they are empty, whatever one may guess.
- Money arrives as integer nano-dollars of the whole rental; times as milliseconds UTC.
- `rent` makes exactly one create call and never retries it.
- Keys never leave the adapter: not in URLs, logs, reprs, errors.
"""

from __future__ import annotations

from typing import Protocol

from jupyter_gpumarket.models import (
    Balance,
    Capabilities,
    MarketCharge,
    Offer,
    OfferQuery,
    Quote,
    Rental,
    SelfStop,
)


class Marketplace(Protocol):
    """One marketplace with one account."""

    @property
    def name(self) -> str:
        """The marketplace's short name, as in `Offer.marketplace`."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    async def offers(self, query: OfferQuery) -> list[Offer]:
        """What is rentable now. The query is a hint to narrow the listing; callers filter again."""

    async def quote(self, offer: Offer) -> Quote:
        """A firm price for an offer: re-read, or bid for.

        Raises:
            OfferGone: it cannot be rented any more.
        """

    async def rent(self, quote: Quote, *, label: str, ssh_public_key: str, deadline_ms: int) -> Rental:
        """Rent it under `label`. `deadline_ms` sets the marketplace's own timer where it has one.

        Raises:
            OfferGone: taken, or dearer than the quote; nothing was rented.
            InsufficientFunds, Unauthorized, Permanent: nothing was rented.
            OutcomeUnknown: it may have been rented (timeout, 5xx, unreadable reply).
        """

    async def find(self, label: str) -> Rental | None:
        """The rental with this label, or None when the account's complete listing has none (it may lag)."""

    async def rentals(self) -> list[Rental]:
        """Everything on the account that may bill, whoever made it."""

    async def rental(self, rental_id: str) -> Rental:
        """One rental now; status GONE when the marketplace says that it does not exist (any more)."""

    async def release(self, rental_id: str) -> None:
        """Ask to end it. Idempotent; of one that is gone, no error. The proof is `rental(...)` saying GONE."""

    async def set_deadline(self, rental_id: str, deadline_ms: int) -> None:
        """Move the marketplace's own timer, when a lease is extended; called only with `Capabilities.own_timer`."""

    async def charges(self, rental_id: str) -> list[MarketCharge]:
        """The marketplace's own bill for it so far."""

    async def balance(self) -> Balance | None:
        """What is left on the account, or None where there is no such thing."""

    def self_stop(self, rental: Rental) -> SelfStop | None:
        """How the node can end its own rental, where that is possible without a full key."""

    async def aclose(self) -> None:
        """Close connections."""
