"""Which node listens for which Dask process of another one, so that an address means the same on all of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Sequence

from jupyter_gpumarket.cluster.fleet_members import Member, Process
from jupyter_gpumarket.cluster.relay import Relay, Target

logger = logging.getLogger(__name__)


class Ways:
    """The listening ports. In each network that a process is not in, one member listens for it."""

    def __init__(self, relay: Relay, *, taken: Callable[[Member, int], None], changed: Callable[[], None]) -> None:
        self._relay = relay
        self._taken = taken
        self._changed = changed
        self._carriers: dict[tuple[str, int], str] = {}
        self._opening: set[tuple[str, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def make(self, processes: Sequence[Process], members: Sequence[Member], head: str) -> None:
        """Order what is missing. Nannies are spoken to by the scheduler alone, on the node `head`."""
        by_id = {member.lease_id: member for member in members}
        for process in processes:
            owner = by_id.get(process.lease_id)
            if owner is None:
                continue
            for member in members:
                if member.network == owner.network:
                    continue
                self._open(member, Target(lease_id=process.lease_id, port=process.port))
                if process.slot is not None and head in by_id and member.network == by_id[head].network:
                    self._open(member, Target(lease_id=process.lease_id, port=process.nanny_port))

    def is_open(self, network: str, port: int) -> bool:
        """Whether somebody in the network listens on the port already."""
        return (network, port) in self._carriers and (network, port) not in self._opening

    def listening(self, networks: Collection[str]) -> list[tuple[str, int]]:
        """Who listens on which port in these networks."""
        return [(lease_id, port) for (network, port), lease_id in self._carriers.items() if network in networks]

    def forget_member(self, lease_id: str) -> None:
        """What a member listened on is closed; others take over."""
        self._carriers = {key: carrier for key, carrier in self._carriers.items() if carrier != lease_id}

    def forget_ports(self, ports: Collection[int]) -> None:
        """A process is no more."""
        for key in [key for key in self._carriers if key[1] in ports]:
            self._relay.stop_listening(self._carriers.pop(key), key[1])

    def close(self) -> None:
        """Let go of orders that are under way."""
        for task in list(self._tasks):
            task.cancel()

    def _open(self, member: Member, target: Target) -> None:
        key = (member.network, target.port)
        if key in self._carriers:
            return
        self._carriers[key] = member.lease_id
        self._opening.add(key)
        task = asyncio.create_task(self._listen(key, member, target))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen(self, key: tuple[str, int], member: Member, target: Target) -> None:
        try:
            reason = await self._relay.listen(member.lease_id, target.port, target)
        finally:
            self._opening.discard(key)
        if reason:
            if self._carriers.get(key) == member.lease_id:
                del self._carriers[key]
            logger.info("node %s cannot listen on port %d: %s", member.name, target.port, reason)
            if "cannot listen" in reason:
                self._taken(member, target.port)
        self._changed()
