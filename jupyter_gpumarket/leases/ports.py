"""What the engine needs of the world, as small contracts. The broker gives the real ones, tests give fakes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from jupyter_gpumarket.api import JournalLine
from jupyter_gpumarket.journal import NewEntry
from jupyter_gpumarket.models import Lease, Machine, Offer, OfferQuery, SelfStop


class LeaseStore(Protocol):
    """Where wishes and facts are kept; the journal fulfils it. What `append` returned for survives any crash."""

    def append(self, entries: Sequence[NewEntry]) -> list[JournalLine]:
        """Write entries and the rows they change, all or nothing.

        Raises:
            JournalError: nothing was written.
        """

    def entries(
        self,
        *,
        after: int = 0,
        subject: str | None = None,
        kinds: Collection[str] | None = None,
        limit: int | None = None,
    ) -> list[JournalLine]:
        """Entries in their order."""

    def lease(self, lease_id: str) -> Lease | None:
        """A lease, also one that has ended."""

    def leases(self, *, open_only: bool = False) -> list[Lease]:
        """All leases, or those that have not ended."""

    def lease_by_request(self, request_id: str) -> Lease | None:
        """The lease that a door's request led to."""

    def machines(self) -> list[Machine]:
        """What is remembered of machines."""


class OfferSource(Protocol):
    """The catalogue of offers."""

    async def candidates(
        self, query: OfferQuery, *, exclude: frozenset[tuple[str, str]], hours: float = 1.0
    ) -> list[Offer]:
        """Fitting offers, best first for a job of `hours`, without the (marketplace, machine_id) pairs in `exclude`.

        Raises:
            NoMatchingOffer: names the filter that removed the last candidates.
            BadRequest: the query cannot be read.
        """


class ClusterPort(Protocol):
    """The cluster processes, which reach the nodes."""

    async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
        """Have the lease's node reached, set up and probed, and facts reported. Idempotent.

        Raises:
            GpuMarketError: the cluster process cannot be reached; the engine tries again.
        """

    async def detach(self, lease: Lease, *, save_s: float) -> None:
        """End what runs on the node, as far as it can be reached, and forget it. Idempotent.

        Declared outputs of its cells may be brought over first, for at most `save_s`.
        """

    async def warn(self, lease: Lease) -> None:
        """Tell that the node will end soon (`lease.notice`), or that this word was taken back (None)."""

    async def set_deadline(self, lease: Lease) -> None:
        """Tell the node its new deadline."""


class KeyBox(Protocol):
    """One SSH key pair for each lease; `keys.KeyStore` fulfils it."""

    def create(self, lease_id: str) -> str:
        """A fresh pair in place of any earlier one; returns the public key line."""

    def wipe(self, lease_id: str) -> None:
        """Forget it. Idempotent."""
