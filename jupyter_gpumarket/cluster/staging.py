"""Inputs that several nodes need cross the user's line once, where nodes reach each other directly.

The first node gets an input from here; who needs it meanwhile waits for it, and takes it from there. Each node checks
the hash of what it gets, so that a node that sends something else costs time and nothing more: the user's side, which
has the input, takes over from where the other one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping

from jupyter_gpumarket.cluster import direct_plan as plan
from jupyter_gpumarket.cluster.doors import Doors
from jupyter_gpumarket.cluster.fleet_members import Member
from jupyter_gpumarket.wire.bulk import BULK_BYTES
from jupyter_gpumarket.wire.door import BlobFetched, FetchBlob

logger = logging.getLogger(__name__)

TURN_S = 0.5
# How long an input waits until it is known whether two nodes reach each other.
LOOKING_S = 6.0
FETCH_S = 30.0
SLOWEST_BYTES_S = 500_000
# Shorter ones tell nothing about a line.
MEASURED_S = 0.05


class Staging:
    """Who brings which input to whom, now."""

    def __init__(self, doors: Doors, members: Mapping[str, Member]) -> None:
        self._doors = doors
        self._members = members
        self._numbers = itertools.count(1)
        self._fetching: dict[int, tuple[str, asyncio.Future[BlobFetched]]] = {}
        # sha256 -> the nodes that get it from here now.
        self._carried: dict[str, list[str]] = {}
        self._guests: Counter[str] = Counter()
        # Who has sent something else to whom: a node's word alone does not keep others from asking there.
        self._wrong: set[tuple[str, str]] = set()
        self._rates: dict[str, float] = {}
        self.direct_bytes = 0

    def meet(self, lease_id: str) -> None:
        """A fresh contact: a fetch that was under way there is over."""
        for fetching_lease, answer in self._fetching.values():
            if fetching_lease == lease_id and not answer.done():
                answer.set_exception(TimeoutError("the agent was restarted"))

    def heard(self, lease_id: str, report: BlobFetched) -> None:
        """A node has an input from another one, or could not get it."""
        fetching_lease, answer = self._fetching.get(report.number, ("", None))
        if answer is not None and fetching_lease == lease_id and not answer.done():
            answer.set_result(report)

    @contextlib.asynccontextmanager
    async def turn(self, lease_id: str, sha256: str, size: int) -> AsyncIterator[bool]:
        """One node's turn to get an input; the value says whether it has it now, from another node.

        While the turn lasts, others wait for what this node gets from here.
        """
        if size >= BULK_BYTES and await self._bring(lease_id, sha256, size):
            yield True
            return
        carried = self._carried.setdefault(sha256, [])
        carried.append(lease_id)
        began_s = time.monotonic()
        try:
            yield False
            self._note_rate("", size, time.monotonic() - began_s)
        finally:
            carried.remove(lease_id)
            if not carried:
                self._carried.pop(sha256, None)

    async def _bring(self, lease_id: str, sha256: str, size: int) -> bool:
        """Have the node get it from another one, as long as that is worth it; nothing is awaited before a `False`."""
        failed: Counter[str] = Counter()
        began_s = time.monotonic()
        while True:
            known = self._holders(lease_id, sha256, failed)
            source = plan.choose_source(known, user_bytes_per_s=self._rates.get("", 0.0))
            if source.lease_id:
                logger.info("%s gets an input of %d bytes from another node: %s", lease_id, size, source.reason)
                if await self._fetch(lease_id, source.lease_id, sha256, size):
                    return True
                failed[source.lease_id] += 1
                continue
            waited_s = time.monotonic() - began_s
            if waited_s > self._patience_s(size):
                logger.info("%s gets an input of %d bytes from here: others took too long", lease_id, size)
                return False
            coming = [self._holder(lease_id, other, failed) for other in self._carried.get(sha256, ())]
            wait = plan.choose_source(coming, user_bytes_per_s=self._rates.get("", 0.0)).lease_id
            others = [*self._carried.get(sha256, ()), *(holder.lease_id for holder in known)]
            is_early = waited_s < LOOKING_S and any(self._doors.is_looking(lease_id, o) for o in others)
            if not wait and not is_early:
                if others:
                    logger.info("%s gets an input of %d bytes from here: %s", lease_id, size, source.reason)
                return False
            await asyncio.sleep(TURN_S)

    async def _fetch(self, lease_id: str, holder: str, sha256: str, size: int) -> bool:
        route = self._doors.route(lease_id, holder)
        member = self._members.get(lease_id)
        if route is None or member is None:
            return False
        number = next(self._numbers)
        answer: asyncio.Future[BlobFetched] = asyncio.get_running_loop().create_future()
        self._fetching[number] = (lease_id, answer)
        self._guests[holder] += 1
        began_s = time.monotonic()
        timeout_s = self._patience_s(size)
        try:
            if not await self._doors.share(holder, sha256, lease_id):
                return False
            order = FetchBlob(number=number, sha256=sha256, size=size, route=route, timeout_s=timeout_s)
            member.node.talk.order(order)
            report = await asyncio.wait_for(answer, timeout_s + FETCH_S)
        except TimeoutError:
            return False
        finally:
            del self._fetching[number]
            self._guests -= Counter({holder: 1})
            self._doors.unshare(holder, sha256, lease_id)
        if report.is_wrong:
            self._wrong.add((holder, lease_id))
            logger.warning("%s says that %s sent another input; it does not ask there again", lease_id, holder)
        if report.error:
            logger.info("%s did not get an input from another node: %.300s", lease_id, report.error)
            return False
        self.direct_bytes += size
        self._note_rate(holder, size, time.monotonic() - began_s)
        return True

    def _holders(self, lease_id: str, sha256: str, failed: Counter[str]) -> list[plan.Holder]:
        others = [key for key, one in self._members.items() if key != lease_id and one.node.talk.inputs.has(sha256)]
        return [self._holder(lease_id, other, failed) for other in others]

    def _holder(self, lease_id: str, other: str, failed: Counter[str]) -> plan.Holder:
        member = self._members.get(other)
        return plan.Holder(
            lease_id=other,
            name=member.name if member is not None else other,
            way=self._doors.way(lease_id, other),
            is_up=member is not None and member.is_up,
            guests=self._guests[other],
            bytes_per_s=self._rates.get(other, 0.0),
            # Once more, since it goes on where it stopped.
            has_failed=failed[other] > 1 or (other, lease_id) in self._wrong,
        )

    def _patience_s(self, size: int) -> float:
        """How long one transfer may take: a node that says nothing, or lies, must not hold up the others for ever."""
        return FETCH_S + size / max(SLOWEST_BYTES_S, self._rates.get("", 0.0) / 2)

    def _note_rate(self, source: str, size: int, took_s: float) -> None:
        if size >= BULK_BYTES and took_s > MEASURED_S:
            self._rates[source] = size / took_s
