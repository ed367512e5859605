"""What the Console's answers mean for a rental. Pure."""

from __future__ import annotations

from jupyter_gpumarket.errors import (
    GpuMarketError,
    InsufficientFunds,
    OfferGone,
    OutcomeUnknown,
    Temporary,
)
from jupyter_gpumarket.marketplaces.akash_replies import SSH_PORT, Holding, LeaseRow, height
from jupyter_gpumarket.marketplaces.http import Absent, Judge
from jupyter_gpumarket.marketplaces.identifiers import path_part
from jupyter_gpumarket.models import NodeAddress, Rental, RentalStatus

NAME = "akash"
NOT_ENOUGH = (b"insufficient_balance", b"balance_top_up_pending", b"Insufficient funds", b"Deposit too low")
BID_OVER = (b"no longer open", b"already been matched", b"Provider not authorized", b"provider_unreachable")


def address_of(lease: LeaseRow | None) -> NodeAddress | None:
    """Where SSH answers, once a container is up. The port is the provider's choice, and may change with a restart."""
    status = lease.status if lease is not None else None
    if status is None:
        return None
    for service, ports in (status.forwarded_ports or {}).items():
        known = (status.services or {}).get(service)
        if known is None or not known.available:
            continue
        for port in ports or ():
            if port.port == SSH_PORT and port.host and 0 < port.external_port < 65536:
                return NodeAddress(host=port.host, port=port.external_port, user="root")
    return None


def status_of(holding: Holding, lease: LeaseRow | None) -> tuple[RentalStatus, str]:
    """Only a closed deployment is gone: while it is open its escrow pays, or can."""
    if holding.deployment.state != "active":
        closed = holding.deployment.state == "closed"
        return (RentalStatus.GONE if closed else RentalStatus.UNKNOWN), f"Akash says {holding.deployment.state[:50]}"
    if lease is None:
        return RentalStatus.FAILED, "an auction that nobody has leased"
    if lease.state not in ("active", "reclaiming"):
        return RentalStatus.FAILED, f"the lease is {lease.state[:50]}: {(lease.reason or 'no reason told')[:100]}"
    if address_of(lease) is not None:
        soon = "the provider is taking it back soon" if lease.state == "reclaiming" else ""
        return RentalStatus.RUNNING, soon
    if lease.status is None:
        return RentalStatus.UNKNOWN, "the provider does not tell how it is"
    return RentalStatus.PENDING, "the container is not up yet"


def reclaim_of(lease: LeaseRow | None) -> tuple[int | None, str]:
    """When the provider takes its machine back, in milliseconds, and why (AEP-82)."""
    told = lease.reclamation if lease is not None and lease.state == "reclaiming" else None
    deadline_s = height(told.deadline) if told is not None else 0
    if told is None or not deadline_s:
        return None, ""
    reason = told.reason.removeprefix("lease_closed_reason_")[:100] or "no reason told"
    return deadline_s * 1000, f"the provider takes its machine back ({reason})"


def judge_create(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What a refused auction means."""
    if status in (400, 402) and any(words in content for words in NOT_ENOUGH):
        return InsufficientFunds
    return Temporary if status == 409 else None


def judge_accept(status: int, content: bytes) -> type[GpuMarketError] | None:
    """What it means that a bid could not be accepted. A manifest that was not delivered comes after the lease."""
    if b"manifest_not_delivered" in content:
        return OutcomeUnknown
    if any(words in content for words in BID_OVER):
        return OfferGone
    return judge_create(status, content)


def judge_one(dseq: str) -> Judge:
    """Of one deployment, 404 means that it is not there, if the Console says so; what is no number never was."""

    def judge(status: int, content: bytes) -> type[GpuMarketError | Absent] | None:
        if status == 404:
            return Absent if b"eployment not found" in content else Temporary
        if status == 400 and b"validation_error" in content and not dseq.isdecimal():
            return Absent
        return Temporary if status == 400 and b"cannot be settled yet" in content else None

    return judge


def gone(rental_id: str) -> Rental:
    """What Akash does not know (any more)."""
    return Rental(
        marketplace=NAME, rental_id=rental_id, label="", status=RentalStatus.GONE, detail="Akash does not know it"
    )


def safe(rental_id: str) -> str:
    """An identifier that can only be one part of a path."""
    return path_part(rental_id, "a deployment of Akash", marks="", most=40)
