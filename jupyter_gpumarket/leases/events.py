"""What can happen to a lease (events) and what is then to be done (instructions). Pure records.

Facts of the cluster process (`api.facts`) are events too: they go into the machine as they came.
"""

from __future__ import annotations

import re

from jupyter_gpumarket.api import (
    LinkBack,
    Linked,
    LinkLost,
    NodeFailed,
    NodeIdle,
    NodeLeaving,
    NodeTraffic,
    Prepared,
    Probed,
)
from jupyter_gpumarket.models import Quote, Record, Rental

# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class TakenUp(Record, frozen=True, kw_only=True):
    """An engine starts to look after the lease: right after the wish, and again after each start of the broker."""


class OfferChosen(Record, frozen=True, kw_only=True):
    """An offer fits, is firm, and is locked for this lease. `label` is what the rental will be called."""

    quote: Quote
    label: str


class NoOffer(Record, frozen=True, kw_only=True):
    """Nothing can be rented."""

    reason: str


class Rented(Record, frozen=True, kw_only=True):
    """The create call was answered with a rental."""

    rental: Rental


class RentRefused(Record, frozen=True, kw_only=True):
    """The create call was refused; the marketplace says that nothing was rented."""

    reason: str


class RentUnclear(Record, frozen=True, kw_only=True):
    """The create call may have happened, or not."""

    reason: str


class RentalAbsent(Record, frozen=True, kw_only=True):
    """Enough complete listings, far enough apart, do not have our label."""


class RentalSeen(Record, frozen=True, kw_only=True):
    """What the marketplace says of the rental now."""

    rental: Rental


class ReleaseUnproven(Record, frozen=True, kw_only=True):
    """The release was asked for, and the rental has not gone."""

    reason: str


class Detached(Record, frozen=True, kw_only=True):
    """The node has been told, or could not be told in time."""


class ReleaseAsked(Record, frozen=True, kw_only=True):
    """Somebody, or a budget, wants the lease to end."""

    reason: str


class Extended(Record, frozen=True, kw_only=True):
    """New totals of time and money."""

    max_s: int
    budget_nusd: int


class PhaseTimeUp(Record, frozen=True, kw_only=True):
    """The state's deadline has passed."""


class DeadlineReached(Record, frozen=True, kw_only=True):
    """The agreed hours, or the budget, are used up."""


class DeadlineNear(Record, frozen=True, kw_only=True):
    """The agreed hours, or the budget, will soon be used up."""


ClusterFact = Linked | Prepared | Probed | NodeFailed | LinkLost | LinkBack | NodeIdle | NodeLeaving | NodeTraffic
CLUSTER_FACTS: tuple[type, ...] = (
    Linked,
    Prepared,
    Probed,
    NodeFailed,
    LinkLost,
    LinkBack,
    NodeIdle,
    NodeLeaving,
    NodeTraffic,
)

Event = (
    TakenUp
    | OfferChosen
    | NoOffer
    | Rented
    | RentRefused
    | RentUnclear
    | RentalAbsent
    | RentalSeen
    | ReleaseUnproven
    | Detached
    | ReleaseAsked
    | Extended
    | PhaseTimeUp
    | DeadlineReached
    | DeadlineNear
    | ClusterFact
)
EVENTS: tuple[type, ...] = (
    TakenUp,
    OfferChosen,
    NoOffer,
    Rented,
    RentRefused,
    RentUnclear,
    RentalAbsent,
    RentalSeen,
    ReleaseUnproven,
    Detached,
    ReleaseAsked,
    Extended,
    PhaseTimeUp,
    DeadlineReached,
    DeadlineNear,
    *CLUSTER_FACTS,
)


def event_name(kind: type) -> str:
    """`offer_chosen` of `OfferChosen`: the word in the journal and in the diagram."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__).lower()


# ── instructions ─────────────────────────────────────────────────────────────────────────────────────────────────────


class FindOffer(Record, frozen=True, kw_only=True):
    """Find, lock and quote an offer → OfferChosen, NoOffer."""


class Rent(Record, frozen=True, kw_only=True):
    """Make the one create call → Rented, RentRefused, RentUnclear."""


class Search(Record, frozen=True, kw_only=True):
    """Look for the label → RentalSeen, RentalAbsent."""


class Watch(Record, frozen=True, kw_only=True):
    """Look at the rental now and then → RentalSeen."""


class Attach(Record, frozen=True, kw_only=True):
    """Have the cluster process reach the node → its facts. `resume`: it was ready before."""

    resume: bool = False


class SetDeadline(Record, frozen=True, kw_only=True):
    """Tell the node when it stops itself."""


class Warn(Record, frozen=True, kw_only=True):
    """Tell the cluster process that the node will end soon, or that this word was taken back."""


class Detach(Record, frozen=True, kw_only=True):
    """Say good-bye to the node → Detached."""


class Release(Record, frozen=True, kw_only=True):
    """Ask for the end, and look for its proof → RentalSeen, ReleaseUnproven. `patient`: after a back-off."""

    patient: bool = False


class WipeKey(Record, frozen=True, kw_only=True):
    """Forget the lease's SSH key."""


class Judge(Record, frozen=True, kw_only=True):
    """Remember a machine as good or bad; written in the same transaction as the lease."""

    marketplace: str
    machine_id: str
    good: bool
    reason: str = ""


Instruction = FindOffer | Rent | Search | Watch | Attach | SetDeadline | Warn | Detach | Release | WipeKey | Judge
