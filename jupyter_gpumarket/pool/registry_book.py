"""The registry's rules: who may rent what, when a rental begins and ends, and what it costs.

No network and no clock of its own: each call gets the time. A rental bills from when its host first says that it serves
it to when the host says that nothing of it is left; of a lost host, to when the host was last heard serving it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from jupyter_gpumarket.api.pool import (
    Account,
    HostOffer,
    HostReport,
    Joining,
    LeaseReport,
    Orders,
    PoolCharge,
    PoolOffer,
    PoolQuote,
    PoolRental,
    Quota,
    RentRequest,
    ServeOrder,
    SshAddress,
)
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.pool.registry_store import HostRow, QuoteRow, RegistryStore, RentalRow, UserRow

QUOTE_LIFE_MS = 120_000
LIVE = frozenset({"pending", "running", "ending", "failed"})


class Refused(Exception):
    """The registry says no: an HTTP status, what is wrong, and with which field."""

    def __init__(self, status: int, message: str, field: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.field = field


class Book:
    """All decisions of the registry over its stored state. `changed` collects hosts whose orders have changed."""

    def __init__(self, store: RegistryStore) -> None:
        self._store = store
        self.changed: set[str] = set()
        # What each host last said to have on its hands, whatever we think it should: an offer is free only when its
        # host is done with it.
        self._busy: dict[str, frozenset[str]] = {}

    # ── hosts ──

    def join(self, joining: Joining, token_digest: str | None, now_ms: int) -> None:
        """Take in a host, or what a known host now says of itself. It is listed from its first report on."""
        known = self._store.host(joining.host_id)
        facts = {name: getattr(joining, name) for name in Joining.__struct_fields__}
        row = HostRow(**facts) if known is None else msgspec.structs.replace(known, **facts)
        self._store.put_host(msgspec.structs.replace(row, last_heard_ms=now_ms), token_digest)

    def report(self, host_id: str, report: HostReport, now_ms: int) -> None:
        """What a host says of its leases: the beginnings and the ends of billing."""
        host = self._host(host_id)
        if report.boot_id == host.boot_id and report.sequence <= host.sequence:
            return
        told = {lease.rental_id: lease for lease in report.leases}
        self._busy[host_id] = frozenset(lease.offer_id for lease in report.leases if lease.state != "gone")
        with self._store.transaction():
            for rental in self._store.live_rentals(host_id):
                seen = after_report(rental, told.get(rental.rental_id), report.boot_id, now_ms)
                self._put(rental, seen)
            self._store.put_host(
                msgspec.structs.replace(
                    host,
                    boot_id=report.boot_id,
                    sequence=report.sequence,
                    last_heard_ms=now_ms,
                    present=not report.leaving,
                    leaves_ms=report.leaves_ms,
                )
            )

    def lose(self, host_id: str) -> None:
        """A host was silent for too long: its rentals have ended when it was last heard serving them."""
        host = self._host(host_id)
        with self._store.transaction():
            self._store.put_host(msgspec.structs.replace(host, present=False))
            for rental in self._store.live_rentals(host_id):
                self._put(rental, ended(rental, rental.serving_until_ms, f"the host {host.name} was lost"))

    def run_timers(self, now_ms: int) -> None:
        """End what has reached its deadline."""
        for rental in self._store.live_rentals():
            if rental.deadline_ms is not None and rental.deadline_ms <= now_ms:
                self._put(rental, asked_to_end(rental, "its deadline has passed"))

    def orders(self, host_id: str, boot_id: str, version: int) -> Orders:
        """All that a host has to serve and to end now."""
        live = self._store.live_rentals(host_id)
        return Orders(
            boot_id=boot_id,
            version=version,
            serve=tuple(
                ServeOrder(
                    rental_id=rental.rental_id,
                    offer_id=rental.offer_id,
                    ssh_public_key=rental.ssh_public_key,
                    deadline_ms=rental.deadline_ms,
                )
                for rental in live
                if rental.status in ("pending", "running")
            ),
            end=tuple(rental.rental_id for rental in live if rental.status == "ending"),
        )

    # ── users ──

    def offers(self) -> list[PoolOffer]:
        """What can be rented now."""
        taken = {rental.offer_id for rental in self._store.live_rentals()}
        return [
            shown_offer(host, offer)
            for host in self._store.hosts()
            if host.present and host.leaves_ms is None
            for offer in host.offers
            if offer.offer_id not in taken | self._busy.get(host.host_id, frozenset())
        ]

    def quote(self, user: UserRow, offer_id: str, now_ms: int) -> PoolQuote:
        """Promise a price for two minutes."""
        host, offer = self._free_offer(offer_id)
        row = QuoteRow(
            quote_id="q-" + secrets.token_hex(12),
            user=user.user,
            offer_id=offer_id,
            host_id=host.host_id,
            price_nusd_hour=offer.price_nusd_hour,
            expires_ms=now_ms + QUOTE_LIFE_MS,
        )
        self._store.put_quote(row, forget_before_ms=now_ms - QUOTE_LIFE_MS)
        return PoolQuote(
            quote_id=row.quote_id,
            offer=shown_offer(host, offer),
            price_nusd_hour=row.price_nusd_hour,
            expires_ms=row.expires_ms,
        )

    def rent(self, user: UserRow, request: RentRequest, now_ms: int) -> PoolRental:
        """Rent at a quoted price; the same label again is the same rental."""
        check_key(request.ssh_public_key)
        known = self._store.rental_with(user.user, request.label)
        quote = self._store.quote(request.quote_id)
        if known is not None:
            if known.ssh_public_key != request.ssh_public_key:
                raise Refused(409, f"the label {request.label} belongs to a rental with another key", "label")
            return self.shown(known)
        if quote is None or quote.user != user.user:
            raise Refused(410, f"there is no quote {request.quote_id} (any more); ask for a new one", "quote_id")
        if quote.expires_ms < now_ms:
            raise Refused(410, f"the quote {request.quote_id} has expired; ask for a new one", "quote_id")
        if request.deadline_ms is not None and request.deadline_ms <= now_ms:
            raise Refused(400, "deadline_ms lies in the past", "deadline_ms")
        host, _ = self._free_offer(quote.offer_id)
        self._check_quota(user, quote.price_nusd_hour)
        row = RentalRow(
            rental_id="r" + secrets.token_hex(6),
            user=user.user,
            label=request.label,
            host_id=host.host_id,
            offer_id=quote.offer_id,
            status="pending",
            price_nusd_hour=quote.price_nusd_hour,
            ssh_public_key=request.ssh_public_key,
            created_ms=now_ms,
            deadline_ms=request.deadline_ms,
        )
        self._put(None, row)
        return self.shown(row)

    def rentals(self, user: UserRow, label: str | None = None) -> list[PoolRental]:
        """A user's live rentals; with a label, the rental of that label whether it lives or not."""
        if label is None:
            return [self.shown(row) for row in self._store.rentals_of(user.user)]
        found = self._store.rental_with(user.user, label)
        return [] if found is None else [self.shown(found)]

    def rental(self, user: UserRow, rental_id: str) -> PoolRental:
        return self.shown(self._rental(user, rental_id))

    def release(self, user: UserRow, rental_id: str) -> PoolRental:
        """Begin to end a rental; it is gone when its host has confirmed that."""
        rental = self._rental(user, rental_id)
        asked = asked_to_end(rental, "released")
        self._put(rental, asked)
        return self.shown(asked)

    def set_deadline(self, user: UserRow, rental_id: str, deadline_ms: int | None, now_ms: int) -> PoolRental:
        """Move the registry's own timer."""
        rental = self._rental(user, rental_id)
        if rental.status not in ("pending", "running"):
            raise Refused(409, f"the rental {rental_id} is {rental.status}", "rental_id")
        if deadline_ms is not None and deadline_ms <= now_ms:
            raise Refused(400, "deadline_ms lies in the past", "deadline_ms")
        moved = msgspec.structs.replace(rental, deadline_ms=deadline_ms)
        self._put(rental, moved)
        return self.shown(moved)

    def charges(self, user: UserRow, rental_id: str, now_ms: int) -> list[PoolCharge]:
        """The bill of a rental so far; empty while nothing was served."""
        rental = self._rental(user, rental_id)
        if rental.served_ms is None:
            return []
        end_ms = max(rental.served_ms, now_ms if rental.ended_ms is None else rental.ended_ms)
        seconds = billed_seconds(rental.served_ms, end_ms)
        return [
            PoolCharge(
                charge_id=f"{rental_id}.1",
                rental_id=rental_id,
                amount_nusd=cost_nusd(rental.price_nusd_hour, seconds * 1000),
                start_ms=rental.served_ms,
                end_ms=end_ms,
                seconds=seconds,
                price_nusd_hour=rental.price_nusd_hour,
                final=rental.ended_ms is not None,
            )
        ]

    def account(self, user: UserRow) -> Account:
        live = self._store.rentals_of(user.user)
        return Account(
            user=user.user,
            granted=user.granted,
            chosen=user.chosen,
            rentals=len(live),
            rate_nusd_hour=sum(rental.price_nusd_hour for rental in live),
        )

    def set_quota(self, user: UserRow, quota: Quota) -> Account:
        """A user's own limit; the owner's stays in force beside it."""
        changed = msgspec.structs.replace(user, chosen=quota)
        self._store.put_user(changed)
        return self.account(changed)

    def shown(self, row: RentalRow) -> PoolRental:
        """A rental as its user sees it."""
        host = self._store.host(row.host_id)
        address = (
            SshAddress(host=host.host, port=host.port, user=row.rental_id, host_key=host.ssh_host_key)
            if host is not None and row.status == "running"
            else None
        )
        leaves_ms = host.leaves_ms if host is not None and row.status in ("pending", "running") else None
        return PoolRental(
            rental_id=row.rental_id,
            label=row.label,
            status=row.status,
            offer_id=row.offer_id,
            machine_id=row.host_id,
            price_nusd_hour=row.price_nusd_hour,
            created_ms=row.created_ms,
            address=address,
            served_ms=row.served_ms,
            ended_ms=row.ended_ms,
            deadline_ms=row.deadline_ms,
            detail=row.detail,
            ends_ms=leaves_ms,
            ends_why=f"its owner drains the host {host.name}" if host is not None and leaves_ms is not None else "",
        )

    # ── inside ──

    def _put(self, before: RentalRow | None, after: RentalRow) -> None:
        if after == before:
            return
        self._store.put_rental(after)
        if before is None or (before.status, before.deadline_ms) != (after.status, after.deadline_ms):
            self.changed.add(after.host_id)

    def _host(self, host_id: str) -> HostRow:
        host = self._store.host(host_id)
        if host is None:
            raise Refused(404, f"there is no host {host_id}; let it join again", "host_id")
        return host

    def _rental(self, user: UserRow, rental_id: str) -> RentalRow:
        rental = self._store.rental(rental_id)
        if rental is None or rental.user != user.user:
            raise Refused(404, f"there is no rental {rental_id}", "rental_id")
        return rental

    def _free_offer(self, offer_id: str) -> tuple[HostRow, HostOffer]:
        for host in self._store.hosts():
            for offer in host.offers:
                if offer.offer_id != offer_id:
                    continue
                if host.leaves_ms is not None:
                    raise Refused(410, f"the machine of the offer {offer_id} is drained, and takes nobody", "offer_id")
                if not host.present:
                    raise Refused(410, f"the machine of the offer {offer_id} is not there now", "offer_id")
                taken = offer_id in self._busy.get(host.host_id, ()) or any(
                    rental.offer_id == offer_id for rental in self._store.live_rentals(host.host_id)
                )
                if taken:
                    raise Refused(409, f"the offer {offer_id} is taken", "offer_id")
                return host, offer
        raise Refused(404, f"there is no offer {offer_id}", "offer_id")

    def _check_quota(self, user: UserRow, price_nusd_hour: int) -> None:
        account = self.account(user)
        most = least(user.granted.max_rentals, user.chosen.max_rentals)
        if most is not None and account.rentals + 1 > most:
            raise Refused(402, f"{user.user} may have {most} rentals at once and has {account.rentals}", "quota")
        rate = least(user.granted.max_nusd_hour, user.chosen.max_nusd_hour)
        if rate is not None and account.rate_nusd_hour + price_nusd_hour > rate:
            raise Refused(
                402,
                f"{user.user} may spend {format_usd(rate)} an hour, spends {format_usd(account.rate_nusd_hour)} "
                f"and asks for {format_usd(price_nusd_hour)} more",
                "quota",
            )


def after_report(rental: RentalRow, told: LeaseReport | None, boot_id: str, now_ms: int) -> RentalRow:
    """A rental after its host's word on it; `told` of None when the host did not mention it."""
    if told is None:
        # A host that started anew has nothing of its earlier life; one of the same life may just not have got to it.
        lost = rental.boot_id not in ("", boot_id)
        return ended(rental, rental.serving_until_ms, "the host started anew") if lost else rental
    if told.state == "gone":
        return ended(rental, None if rental.served_ms is None else now_ms, told.detail or rental.detail)
    if told.state == "failed" and rental.status == "pending":
        return msgspec.structs.replace(rental, status="failed", detail=told.detail)
    if told.state == "serving" or rental.served_ms is not None:
        # One that was released before its host had said a word does serve, so it does cost until it is gone.
        return msgspec.structs.replace(
            rental,
            status="running" if rental.status == "pending" else rental.status,
            served_ms=now_ms if rental.served_ms is None else rental.served_ms,
            serving_until_ms=now_ms,
            boot_id=boot_id,
        )
    return rental


def asked_to_end(rental: RentalRow, why: str) -> RentalRow:
    """A rental that shall end; one that never began on its host still waits for the host's word."""
    if rental.status in ("ending", "gone"):
        return rental
    return msgspec.structs.replace(rental, status="ending", detail=why)


def ended(rental: RentalRow, ended_ms: int | None, why: str) -> RentalRow:
    """A rental that is over. One that was never served ends without a time and without a bill."""
    return msgspec.structs.replace(
        rental,
        status="gone",
        ended_ms=ended_ms if ended_ms is not None else rental.served_ms,
        detail=why or rental.detail,
    )


def check_key(line: str) -> None:
    """Refuse here what the host's SSH server could not read."""
    try:
        load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise Refused(
            400, "ssh_public_key is not a public key as in an authorized_keys file", "ssh_public_key"
        ) from None


def billed_seconds(start_ms: int, end_ms: int) -> int:
    """Whole seconds, rounded up."""
    return -(-(end_ms - start_ms) // 1000)


def shown_offer(host: HostRow, offer: HostOffer) -> PoolOffer:
    return PoolOffer(
        offer_id=offer.offer_id,
        machine_id=host.host_id,
        price_nusd_hour=offer.price_nusd_hour,
        facts=offer.facts,
        provider=host.name,
        region=host.region,
        country=host.country,
    )


def least(*limits: int | None) -> int | None:
    known: Iterable[int] = [limit for limit in limits if limit is not None]
    return min(known, default=None)
