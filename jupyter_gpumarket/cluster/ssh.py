"""The real way to nodes: an SSH link, with set-up and probe from `nodes`."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jupyter_gpumarket.api import Attach, NodeSystem, PackagePin, PackageThere, SetupStep
from jupyter_gpumarket.nodes import Installed, NodeLink, Reader, SetupPlan, Writer, extra, prepare, probe

LOG_BYTES = 64 * 1024


class SshLink:
    """One SSH connection to one node."""

    def __init__(self, attach: Attach, host_key: str | None) -> None:
        self._link = NodeLink(attach.address, key_path=Path(attach.key_path), host_key=host_key)

    @property
    def host_key(self) -> str | None:
        return self._link.host_key

    @property
    def first_sight(self) -> bool:
        return self._link.first_sight

    @property
    def connected(self) -> bool:
        return self._link.connected

    async def connect(self) -> None:
        await self._link.connect()

    async def prepare(self, attach: Attach, on_step: Callable[[SetupStep], None]) -> Installed:
        plan = SetupPlan(
            lease_id=attach.lease_id,
            deadline_ms=attach.deadline_ms,
            grace_s=attach.grace_s,
            self_stop=attach.self_stop,
        )
        return await prepare(self._link, plan, on_step)

    async def probe(self, installed: Installed, attach: Attach) -> tuple[dict[str, Any], tuple[str, ...]]:
        found = await probe(self._link, installed, attach.offer, demo=attach.demo)
        return found.report, found.differences

    async def packages(
        self, attach: Attach, installed: Installed, pins: tuple[PackagePin, ...]
    ) -> tuple[tuple[PackageThere, ...], NodeSystem]:
        return await extra.look(self._link, attach.lease_id, installed, pins)

    async def bring_packages(
        self, attach: Attach, installed: Installed, pins: tuple[PackagePin, ...], where: tuple[str, ...]
    ) -> None:
        await extra.bring(self._link, attach.lease_id, installed, pins, where)

    async def open_stream(self, command: str) -> tuple[Reader, Writer]:
        return await self._link.open_stream(command)

    async def log(self, installed: Installed) -> str:
        folder = shlex.quote(installed.folder)
        of_dask = f'for log in dask/*/log; do [ -f "$log" ] && echo "== $log" && tail -c {LOG_BYTES // 4} "$log"; done'
        command = f"cd {folder} && tail -c {LOG_BYTES} agent.log; {of_dask}; true"
        done = await self._link.run(command, timeout_s=10, check=False)
        return done.stdout.decode("utf-8", "replace")

    def abort(self) -> None:
        self._link.abort()
