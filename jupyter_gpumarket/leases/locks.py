"""One offer is bought by one lease at a time."""

from __future__ import annotations


class OfferLocks:
    """Who is buying which offer, from the quote until the outcome of the create call is known."""

    def __init__(self) -> None:
        self._holder: dict[tuple[str, str], str] = {}

    def take(self, marketplace: str, offer_id: str, lease_id: str) -> bool:
        """Lock an offer; False when another lease has it."""
        return self._holder.setdefault((marketplace, offer_id), lease_id) == lease_id

    def free(self, lease_id: str) -> None:
        """Give up whatever the lease has locked."""
        self._holder = {offer: holder for offer, holder in self._holder.items() if holder != lease_id}
