"""Which nodes' Dask workers retire because their node will end soon."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from jupyter_gpumarket.cluster.fleet_members import Member


def heed(
    members: Iterable[Member], *, running: Collection[str], head: str, retire: Callable[[str, str], object]
) -> None:
    """Have nodes that will end soon hand over what they hold, while there is somebody to take it.

    The head does not: its scheduler cannot move, and Dask's results end with it, wherever they lie. A node about which
    the word was taken back works on.

    Args:
        running: leases on which a worker runs.
        head: the scheduler's lease.
        retire: does it: lease, and why.
    """
    members = list(members)
    for member in members:
        if member.retires_for_notice and not member.node.is_leaving:
            member.is_retiring = member.retires_for_notice = False
    if not any(m.lease_id in running and not m.node.is_leaving and not m.is_retiring for m in members):
        return
    for member in members:
        if member.node.is_leaving and not member.is_retiring and member.lease_id != head:
            notice = member.node.record.attach.notice
            member.retires_for_notice = True
            retire(member.lease_id, notice.reason if notice is not None else "")
