"""What is known of each item of a map, and which node gets which. Pure: no I/O, no clock.

What must hold, whatever is lost, doubled or late:
1. An item ends once. What is told of it afterwards changes nothing.
2. An item that has not ended is waiting, or held by a node.
3. A node that is lost costs the tries that it had begun, and nothing else.

Entries 0 to count - 1 are the items. Entry count + k is the second run of the k-th verified item; it waits only once
the first run has gone well, and never goes to the machine of the first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from jupyter_gpumarket.api import ItemState
from jupyter_gpumarket.models import Record

Key = tuple[int, int]

# So many items wait on a node for each of its slots, at most: what is kept there must come back when it is lost.
MOST_AHEAD = 64
LEAST_AHEAD = 2
# A try's number may be ahead of ours by what was not written down before a crash.
MOST_TRIES = 100


class Report(Record, frozen=True, kw_only=True):
    """How a try ended, as far as the table cares. `status`: ok, error, timed_out or died."""

    index: int
    attempt: int
    lease_id: str
    status: str


class Entry:
    """One item, or the second run of one."""

    __slots__ = ("attempt", "avoid", "deaths", "errors", "holders", "is_queued", "state")

    def __init__(self) -> None:
        self.attempt = 1
        self.errors = 0
        self.deaths = 0
        self.state: ItemState | None = None
        self.is_queued = False
        # lease -> whether it has begun the present attempt there
        self.holders: dict[str, bool] = {}
        self.avoid: set[str] = set()


class Table:
    """The items of one map."""

    def __init__(self, count: int, *, retries: int, deaths: int, checked: Sequence[int] = ()) -> None:
        """`checked`: the items that are to be run a second time."""
        self.count = count
        self._retries = retries
        self._deaths = max(1, deaths)
        self.checked = tuple(checked)
        self._check_of = {item: count + k for k, item in enumerate(checked)}
        self.entries = [Entry() for _ in range(count + len(checked))]
        # What left the queue by another way stays in it until it comes to the front; `is_queued` tells.
        self._waiting: deque[int] = deque()
        self._waiting_checks: deque[int] = deque()
        self._queued_items = 0
        self._held: dict[str, set[int]] = {}
        self.retried = 0
        self.counts = dict.fromkeys(ItemState, 0)
        self.checks_ended = 0
        for index in range(count):
            self._queue(index)

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def ended(self) -> int:
        """How many items have ended."""
        return sum(self.counts.values())

    @property
    def is_complete(self) -> bool:
        """Whether every item has ended (second runs apart)."""
        return self.ended == self.count

    @property
    def running(self) -> int:
        """How many items some node has begun."""
        held = {index for of_node in self._held.values() for index in of_node}
        return sum(1 for index in held if index < self.count and self._is_begun(index))

    def waiting_for(self, lease_id: str) -> int:
        """How many entries wait that this node may have."""
        checks = (self.entries[index] for index in self._waiting_checks)
        return self._queued_items + sum(entry.is_queued and lease_id not in entry.avoid for entry in checks)

    def base(self, index: int) -> int:
        """The item that an entry stands for."""
        return index if index < self.count else self.checked[index - self.count]

    def is_check(self, index: int) -> bool:
        """Whether an entry is a second run."""
        return index >= self.count

    def load(self, lease_id: str) -> int:
        """How many entries a node has."""
        return len(self._held.get(lease_id, ()))

    def begun(self, lease_id: str) -> int:
        """How many of them it has begun."""
        return sum(self.entries[index].holders.get(lease_id, False) for index in self._held.get(lease_id, ()))

    def tries(self, index: int) -> int:
        """How many tries of an entry came to an end."""
        return self.entries[index].errors + self.entries[index].deaths

    def is_held(self, index: int, lease_id: str) -> bool:
        """Whether a node has an entry."""
        entry = self._entry(index)
        return entry is not None and lease_id in entry.holders

    def open_checks(self, leases: Iterable[str]) -> int:
        """How many second runs can still come to an end on one of these nodes."""
        there = set(leases)
        return sum(
            1
            for index in range(self.count, len(self.entries))
            if self.entries[index].state is None
            and (self.entries[index].is_queued or self.entries[index].holders)
            and (self.entries[index].holders or there - self.entries[index].avoid)
        )

    # ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────

    def take(self, lease_id: str, most: int) -> list[Key]:
        """Give a node up to so many waiting entries."""
        taken = self._take_from(self._waiting, lease_id, most)
        return taken + self._take_from(self._waiting_checks, lease_id, most - len(taken))

    def copy(self, lease_id: str, victim: str, most: int) -> list[Key]:
        """Give a node what another one holds and cannot be asked for: what ends first counts."""
        held = sorted(self._held.get(victim, ()), key=lambda index: (self.entries[index].holders[victim], index))
        taken: list[Key] = []
        for index in held:
            entry = self.entries[index]
            if len(taken) >= most:
                break
            if (
                len(entry.holders) > 1
                or lease_id in entry.holders
                or (self.is_check(index) and lease_id in entry.avoid)
            ):
                continue
            self._hold(lease_id, index)
            taken.append((index, entry.attempt))
        return taken

    def begin(self, lease_id: str, keys: Iterable[Key]) -> None:
        """A node has begun these."""
        for index, attempt in keys:
            entry = self._entry(index)
            if entry is not None and entry.attempt == attempt and lease_id in entry.holders:
                entry.holders[lease_id] = True

    def give_back(self, lease_id: str, keys: Iterable[Key]) -> None:
        """A node will not run these."""
        for index, attempt in keys:
            entry = self._entry(index)
            if entry is not None and entry.attempt == attempt and not entry.holders.get(lease_id, True):
                self._release(lease_id, index)
                self._queue_if_free(index)

    def agree(self, lease_id: str, held: Iterable[tuple[int, int, bool]], *, may_claim: bool) -> None:
        """A node has told all that it has: (index, attempt, whether begun). What it had and has no more was lost.

        `may_claim`: it may have what we do not know of any more, since this process was started anew.
        """
        told = {(index, attempt): begun for index, attempt, begun in held}
        for index in list(self._held.get(lease_id, ())):
            if (index, self.entries[index].attempt) not in told:
                self._lose(lease_id, index)
        for (index, attempt), begun in told.items():
            entry = self._entry(index)
            if entry is None or not (may_claim or lease_id in entry.holders):
                continue
            if entry.state is not None or lease_id in entry.avoid or not 0 <= attempt - entry.attempt <= MOST_TRIES:
                continue
            entry.attempt = attempt
            self._unqueue(index)
            self._hold(lease_id, index)
            entry.holders[lease_id] = begun

    def lose_node(self, lease_id: str) -> None:
        """A node is gone for good, with all that it had."""
        for index in list(self._held.get(lease_id, ())):
            self._lose(lease_id, index)
        self._held.pop(lease_id, None)

    def let_go(self, lease_id: str) -> None:
        """A node was told to drop all that it had: nobody is to blame for what it had begun."""
        for index in list(self._held.get(lease_id, ())):
            self._release(lease_id, index)
            self._queue_if_free(index)

    def judge(self, report: Report) -> ItemState | None:
        """How the item would end by this report: a state, or None for another try. What came before is not changed."""
        entry = self.entries[report.index]
        if report.status == "ok":
            return ItemState.OK
        if report.status == "died":
            return ItemState.POISONED if entry.deaths + 1 >= self._deaths else None
        return ItemState.ERROR if entry.errors + 1 > self._retries else None

    def is_news(self, report: Report) -> bool:
        """Whether a report tells something: the end of a try that this node has, of an item that has not ended.

        A good end of an earlier try counts as well: the result is the result.
        """
        entry = self._entry(report.index)
        if entry is None or entry.state is not None or report.lease_id not in entry.holders:
            return False
        return report.status == "ok" or 0 <= report.attempt - entry.attempt <= MOST_TRIES

    def end(self, report: Report) -> ItemState | None:
        """Take a try's end: the item's final state, or None for another try. Call it only for news."""
        entry = self.entries[report.index]
        state = self.judge(report)
        entry.attempt = max(entry.attempt, report.attempt)
        if report.status == "died":
            entry.deaths += 1
        elif report.status != "ok":
            entry.errors += 1
        if state is None:
            self._try_again(report.index)
            return None
        self._finish(report, state)
        return state

    def restore(self, told: tuple[Report, ItemState | None]) -> None:
        """Take what was written down before: a try's end, and the item's, if it was that."""
        report, state = told
        entry = self._entry(report.index)
        if entry is None or entry.state is not None:
            return
        entry.attempt = max(entry.attempt, report.attempt)
        if report.status == "died":
            entry.deaths += 1
        elif report.status != "ok":
            entry.errors += 1
        if state is None:
            self._try_again(report.index)
        else:
            self._finish(report, state)

    def drop(self, report: Report) -> None:
        """A report that is no news: the node does not hold the item any more."""
        entry = self._entry(report.index)
        if entry is not None and entry.attempt == report.attempt:
            self._release(report.lease_id, report.index)
            self._queue_if_free(report.index)

    # ── small steps ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _finish(self, report: Report, state: ItemState) -> None:
        index, entry = report.index, self.entries[report.index]
        entry.state = state
        self._unqueue(index)
        for lease_id in list(entry.holders):
            self._release(lease_id, index)
        if self.is_check(index):
            self.checks_ended += 1
            return
        self.counts[state] += 1
        check = self._check_of.get(index)
        if check is not None and state is ItemState.OK:
            self.entries[check].avoid = {report.lease_id}
            self._queue(check)

    def _try_again(self, index: int) -> None:
        entry = self.entries[index]
        entry.attempt += 1
        self.retried += 1
        for holder in list(entry.holders):
            self._release(holder, index)
        self._queue(index)

    def _lose(self, lease_id: str, index: int) -> None:
        entry = self.entries[index]
        was_begun = entry.holders.get(lease_id, False)
        self._release(lease_id, index)
        if entry.state is not None or entry.holders:
            return
        if was_begun:
            entry.deaths += 1
            if entry.deaths >= self._deaths:
                return  # whoever keeps the record looks for `lost_too_often` and writes this end down
            entry.attempt += 1
            self.retried += 1
        self._queue(index)

    def lost_too_often(self) -> list[Key]:
        """Items that took their node with them each time, and wait for their end to be written down."""
        return [
            (index, entry.attempt)
            for index, entry in enumerate(self.entries)
            if entry.state is None and entry.deaths >= self._deaths and not entry.is_queued and not entry.holders
        ]

    def poison(self, index: int, lease_id: str) -> None:
        """Write off an item that was lost too often."""
        attempt = self.entries[index].attempt
        self._finish(Report(index=index, attempt=attempt, lease_id=lease_id, status="died"), ItemState.POISONED)

    def _entry(self, index: int) -> Entry | None:
        return self.entries[index] if 0 <= index < len(self.entries) else None

    def _is_begun(self, index: int) -> bool:
        return any(self.entries[index].holders.values())

    def _hold(self, lease_id: str, index: int) -> None:
        self.entries[index].holders.setdefault(lease_id, False)
        self._held.setdefault(lease_id, set()).add(index)

    def _release(self, lease_id: str, index: int) -> None:
        self.entries[index].holders.pop(lease_id, None)
        self._held.get(lease_id, set()).discard(index)

    def _queue_if_free(self, index: int) -> None:
        entry = self.entries[index]
        if entry.state is None and not entry.holders:
            self._queue(index)

    def _queue(self, index: int) -> None:
        entry = self.entries[index]
        if entry.is_queued:
            return
        entry.is_queued = True
        if self.is_check(index):
            self._waiting_checks.append(index)
        else:
            self._queued_items += 1
            self._waiting.append(index)

    def _unqueue(self, index: int) -> None:
        entry = self.entries[index]
        if entry.is_queued:
            entry.is_queued = False
            self._queued_items -= 0 if self.is_check(index) else 1

    def _take_from(self, queue: deque[int], lease_id: str, most: int) -> list[Key]:
        taken: list[Key] = []
        passed: list[int] = []
        while queue and len(taken) < most:
            index = queue.popleft()
            entry = self.entries[index]
            if not entry.is_queued:
                continue
            if self.is_check(index) and lease_id in entry.avoid:
                passed.append(index)
                continue
            self._unqueue(index)
            self._hold(lease_id, index)
            taken.append((index, entry.attempt))
        queue.extendleft(reversed(passed))
        return taken


class Place(Record, frozen=True, kw_only=True):
    """A node as the sharing-out sees it. `silent_s`: for how long it has not been heard; 0 when the link is up.

    `leaving_s`: for how long it has been known that it will end soon; None for a node that stays.
    """

    lease_id: str
    slots: int
    silent_s: float = 0.0
    is_asked: bool = False
    leaving_s: float | None = None


class Share(Record, frozen=True, kw_only=True):
    """A decision: `lease_id` gets `count` entries that wait, or copies of what `copy_of` has; or is asked for some."""

    lease_id: str
    count: int
    copy_of: str = ""
    take_back: bool = False


def share_out(table: Table, places: Sequence[Place], *, patience_s: float) -> list[Share]:
    """Who gets what now. Shares shrink with what is left, so that all nodes end together."""
    up = [place for place in places if not place.silent_s and place.leaving_s is None]
    shares = _back_from_leaving(table, places) if up else []
    hungry: list[Place] = []
    given = 0
    # With nobody to take over, nodes that will end go on as long as they can.
    up = up or [place for place in places if not place.silent_s]
    slots = sum(place.slots for place in up)
    for place in sorted(up, key=lambda place: table.load(place.lease_id) / place.slots):
        waiting = max(0, table.waiting_for(place.lease_id) - given)
        ahead = min(MOST_AHEAD, max(LEAST_AHEAD, -(-waiting // (2 * slots))))
        load = table.load(place.lease_id)
        wanted = min(waiting, ahead * place.slots - load)
        if wanted > 0 and load <= (ahead * place.slots) // 2:
            shares.append(Share(lease_id=place.lease_id, count=wanted))
            given += wanted
        elif load < place.slots and not waiting:
            hungry.append(place)
    for place in hungry:
        share = _from_others(table, place, places, patience_s)
        if share is not None:
            shares.append(share)
    return shares


def _back_from_leaving(table: Table, places: Sequence[Place]) -> list[Share]:
    """Nodes that will end give back all that they have not begun."""
    return [
        Share(lease_id=place.lease_id, count=unbegun, take_back=True)
        for place in places
        if place.leaving_s is not None and not place.silent_s and not place.is_asked
        if (unbegun := table.load(place.lease_id) - table.begun(place.lease_id)) > 0
    ]


def _from_others(table: Table, hungry: Place, places: Sequence[Place], patience_s: float) -> Share | None:
    """What a node without work gets of the others' shares."""
    free = hungry.slots - table.load(hungry.lease_id)
    silent = [
        place
        for place in places
        if max(place.silent_s, place.leaving_s or 0.0) >= patience_s
        and place.lease_id != hungry.lease_id
        and table.load(place.lease_id)
    ]
    if silent:
        return Share(lease_id=hungry.lease_id, count=free, copy_of=silent[0].lease_id)
    rich = [place for place in places if not place.silent_s and place.lease_id != hungry.lease_id]
    spare = {
        place.lease_id: table.load(place.lease_id) - max(place.slots, table.begun(place.lease_id)) for place in rich
    }
    if any(place.is_asked for place in rich):
        return None
    if not spare or max(spare.values()) <= 0:
        return None
    richest = max(spare, key=lambda lease_id: spare[lease_id])
    return Share(lease_id=richest, count=max(1, spare[richest] // 2), take_back=True)
