"""Ports that a node says it cannot listen on: who has to give way, so that one node cannot stop the work of others.

A port is chosen by chance among twelve thousand, so an honest node says this hardly ever, and never again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Literal

from jupyter_gpumarket.cluster.fleet_members import Member, Process

logger = logging.getLogger(__name__)

# So often the processes of others are started on other ports for the sake of one node.
MAX_RESTARTS = 2

Yields = Literal["process", "asker", "owner"]


def who_yields(*, restarts: int, is_scheduler_in_use: bool, is_asker_head: bool) -> Yields:
    """Who gives way when a node cannot listen for a process of another one.

    Args:
        restarts: how often processes were started elsewhere for this node's sake.
        is_scheduler_in_use: whether the port is that of a scheduler with workers: all results would end with it.
        is_asker_head: whether the node runs the scheduler; it cannot be left out.

    Returns:
        "process": it starts again on other ports. "asker": the node takes no part in Dask. "owner": the process's node
        does not.
    """
    if is_scheduler_in_use:
        return "asker"
    if restarts < MAX_RESTARTS:
        return "process"
    return "owner" if is_asker_head else "asker"


class Clashes:
    """Acts on it."""

    def __init__(
        self,
        members: Mapping[str, Member],
        processes: Mapping[str, Process],
        *,
        stop: Callable[[Callable[[Process], bool]], None],
        notice: Callable[[str], None],
    ) -> None:
        self._members = members
        self._processes = processes
        self._stop = stop
        self._notice = notice

    def taken(self, asker: Member, port: int) -> None:
        """The node says that it cannot listen on the port of another one's process."""
        process = next((p for p in self._processes.values() if port in (p.port, p.nanny_port)), None)
        owner = self._members.get(process.lease_id) if process is not None else None
        if process is None or owner is None or asker.kept_out:
            return
        scheduler = next((p for p in self._processes.values() if p.is_scheduler), None)
        yields = who_yields(
            restarts=asker.restarts,
            is_scheduler_in_use=process.is_scheduler and self._has_workers(process),
            is_asker_head=scheduler is not None and scheduler.lease_id == asker.lease_id,
        )
        if yields == "process":
            asker.restarts += 1
            logger.info("%s starts on other ports: %s cannot listen on %d", process.name, asker.name, port)
            self._stop(lambda other: other is process)
        else:
            self._keep_out(asker if yields == "asker" else owner, asker, port)

    def _has_workers(self, scheduler: Process) -> bool:
        return any(
            not p.is_scheduler and p.generation == scheduler.generation and p.state != "starting"
            for p in self._processes.values()
        )

    def _keep_out(self, member: Member, asker: Member, port: int) -> None:
        member.kept_out = f"{asker.name} cannot listen on port {port}, which Dask needs there"
        self._notice(
            f"{member.name} takes no part in Dask: {member.kept_out}. Cells and maps run on it; give it back with "
            f"`%gpu release {member.name}` if it is of no use"
        )
        self._stop(lambda process: process.lease_id == member.lease_id)
