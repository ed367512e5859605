"""How patient, how careful and how stubborn the engine is. Pure data; the defaults are for real marketplaces."""

from __future__ import annotations

import msgspec

from jupyter_gpumarket.models import Capabilities, LeaseState, Record

PHASE_S: dict[str, int] = {
    LeaseState.QUOTING: 120,
    LeaseState.RENTING: 150,
    LeaseState.BOOTING: 600,
    LeaseState.LINKING: 240,
    LeaseState.PREPARING: 900,
    LeaseState.PROBING: 300,
    LeaseState.DRAINING: 20,
}


class Policy(Record, frozen=True, kw_only=True):
    """Limits of the lease machine and its engine.

    Attributes:
        max_attempts: offers that one lease tries before it fails.
        phase_s: the longest time in each state before `ready`, seconds; a state that is not named has no limit.
        phase_budget_ppm: the part of the lease's budget that one billed phase before `ready` may cost.
        idle_s: a ready node that ran no cell for so long is released; 0 for never.
        rent_timeout_s: after so long without an answer a create call counts as unknown, and the label is looked for.
        call_timeout_s: the same for calls that cost nothing.
        auction_s: how long a quote may take where it is an auction's bid.
        clean_lists: how many complete listings without our label prove that nothing was rented.
        absent_grace_s: how far apart these are, beyond the marketplace's own listing lag.
        poll_first_s, poll_boot_s: how soon a rental that boots or ends is looked at again, doubling from the one to
            the other; poll_ready_s: how often while it is ready.
        poll_notice_s: the same while it is ready, where the marketplace may give notice at short term.
        retry_first_s, retry_most_s: back-off of calls that failed, doubling from the one to the other.
        show_unconfirmed_after: release calls without proof of the end, after which the user is told.
        sweep_every_s: how often each account is searched for rentals with our label that no lease knows.
        detach_s: how long saying good-bye to a node may delay its release.
        save_s: how long, before that, declared outputs of its cells may be on their way.
        bad_machine_s: how long a machine is remembered as bad.
        least_paid_s: an offer that the budget pays for less than this is not worth taking.
        take_up_s: what is left at least of a phase when the broker starts again.
        timer_step_s: a deadline's timer looks at the clock at least so often, because laptops sleep.
    """

    max_attempts: int = 4
    phase_s: dict[str, int] = msgspec.field(default_factory=PHASE_S.copy)
    phase_budget_ppm: int = 500_000
    idle_s: int = 1800
    rent_timeout_s: float = 120
    call_timeout_s: float = 30
    auction_s: float = 75
    clean_lists: int = 2
    absent_grace_s: float = 15
    poll_first_s: float = 0.25
    poll_boot_s: float = 2
    poll_ready_s: float = 30
    poll_notice_s: float = 5
    retry_first_s: float = 1
    retry_most_s: float = 60
    show_unconfirmed_after: int = 3
    sweep_every_s: float = 120
    detach_s: float = 5
    save_s: float = 10
    bad_machine_s: int = 24 * 3600
    least_paid_s: int = 30
    take_up_s: int = 60
    timer_step_s: float = 30

    def retry_s(self, failures: int, jitter: float) -> float:
        """Seconds until the next try after so many failures. `jitter` in [0, 1) spreads what failed together."""
        seconds = min(self.retry_most_s, self.retry_first_s * float(1 << min(failures, 16)))
        return seconds * (0.75 + jitter / 2)

    def look_s(self, looks: int) -> float:
        """Seconds until the next look at a rental that boots or ends, after so many: some machines are quick."""
        return min(self.poll_boot_s, self.poll_first_s * float(1 << min(looks, 16)))

    def clean_gap_s(self, capabilities: Capabilities) -> float:
        """Seconds between two listings that together prove that something is absent."""
        return capabilities.listing_lag_s + self.absent_grace_s
