"""The cluster processes: started with an environment that holds no keys, found again after a restart, told about nodes.

Fulfils `leases.ports.ClusterPort`. A cluster process outlives the broker; what lies in its folder is enough to find it
again: `cluster.json` (its own: URL, token, pid) and `broker.json` (ours: URL and a token good for facts alone).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import psutil

from jupyter_gpumarket.api import (
    Attach,
    ClusterAccess,
    DaskRetire,
    DaskView,
    DaskWish,
    DeadlineChange,
    Detach,
    NodeNotice,
    NodeView,
    Problem,
)
from jupyter_gpumarket.broker.logs import Redactor
from jupyter_gpumarket.broker.web import TokenBook
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.config import Folders, write_private
from jupyter_gpumarket.errors import NodeError, Unreachable
from jupyter_gpumarket.models import ENDED_STATES, Lease, LeaseState, SelfStop

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
CALL_TIMEOUT_S = 15.0
GLANCE_TIMEOUT_S = 1.0
POLL_S = 0.05
# What a cluster process may know of our environment: where programs, packages and temporary files are, and the
# language. Everything else stays here, and with it every key.
_PASSED_ON = "PATH HOME USER LOGNAME LANG LANGUAGE TZ TMPDIR TMP TEMP SHELL VIRTUAL_ENV LD_LIBRARY_PATH XDG_RUNTIME_DIR"
PASSED_ON = frozenset(_PASSED_ON.split())
PASSED_ON_PREFIXES = ("LC_", "PYTHON")
# In these the engine has had the node attached, and a cluster process has to be there for it.
ATTACHED = frozenset(
    {
        LeaseState.LINKING,
        LeaseState.PREPARING,
        LeaseState.PROBING,
        LeaseState.READY,
        LeaseState.UNREACHABLE,
    }
)


class ClusterFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster process writes about itself."""

    url: str
    token: str
    pid: int

    def __repr__(self) -> str:
        return f"ClusterFile(url={self.url!r}, pid={self.pid})"


class StartFile(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster process is told at its start."""

    cluster_id: str
    direct: bool = True


class BrokerAccess(msgspec.Struct, frozen=True, kw_only=True):
    """Where a cluster process reports its facts."""

    url: str
    token: str


class Clusters:
    """All cluster processes of this broker."""

    def __init__(
        self,
        *,
        folders: Folders,
        clock: Clock,
        tokens: TokenBook,
        redactor: Redactor,
        broker_url: str,
        call_timeout_s: float = CALL_TIMEOUT_S,
        demos: AbstractSet[str] = frozenset(),
        direct: bool = True,
    ) -> None:
        self._direct = direct
        self._demos = demos
        self._folders = folders
        self._clock = clock
        self._tokens = tokens
        self._redactor = redactor
        self._broker_url = broker_url
        self._call_timeout_s = call_timeout_s
        self._http = httpx.AsyncClient(trust_env=False, timeout=call_timeout_s, limits=httpx.Limits(max_connections=64))
        self._starting: dict[str, asyncio.Lock] = {}
        self._self_stops: dict[str, SelfStop | None] = {}

    # ── what the lease engine asks ───────────────────────────────────────────────────────────────────────────────────

    async def attach(self, lease: Lease, *, self_stop: SelfStop | None, resume: bool) -> None:
        """Have the node reached, set up and probed. Idempotent.

        Raises:
            Unreachable: the cluster process does not run and cannot be started, or does not answer.
        """
        assert lease.address is not None, "a node is attached once its address is known"
        assert lease.deadline_ms is not None, "a rented node has a deadline"
        self._self_stops[lease.lease_id] = self_stop
        body = Attach(
            lease_id=lease.lease_id,
            name=lease.name,
            address=lease.address,
            key_path=str(self._folders.keys / lease.lease_id),
            deadline_ms=lease.deadline_ms,
            grace_s=lease.request.grace_s,
            host_key=lease.host_key or lease.address.host_key,
            offer=lease.offer,
            trusted=lease.request.trusted,
            self_stop=self_stop,
            resume=resume,
            demo=lease.offer is not None and lease.offer.marketplace in self._demos,
            notice=lease.notice,
        )
        process = await self._running(cluster_of(lease))
        await self._call(process, "PUT", f"/v1/nodes/{_part(lease.lease_id)}", body)

    async def detach(self, lease: Lease, *, save_s: float = 0.0) -> None:
        """End what runs on the node as far as it can be reached, after declared outputs were brought over in `save_s`.

        A cluster process that is gone needs no detaching.
        """
        self._self_stops.pop(lease.lease_id, None)
        process = await self._living(cluster_of(lease))
        if process is not None:
            body = Detach(save_s=save_s, reason=lease.reason)
            path = f"/v1/nodes/{_part(lease.lease_id)}/detach"
            await self._call(process, "POST", path, body, timeout_s=self._call_timeout_s + save_s)

    async def warn(self, lease: Lease) -> None:
        """Tell that the node will end soon, or that this word was taken back.

        Raises:
            Unreachable: the cluster process does not run and cannot be started, or does not answer.
        """
        process = await self._running(cluster_of(lease))
        await self._call(process, "POST", f"/v1/nodes/{_part(lease.lease_id)}/notice", NodeNotice(notice=lease.notice))

    async def set_deadline(self, lease: Lease) -> None:
        """Tell the node its new deadline."""
        assert lease.deadline_ms is not None, "a rented node has a deadline"
        process = await self._running(cluster_of(lease))
        body = DeadlineChange(deadline_ms=lease.deadline_ms)
        await self._call(process, "POST", f"/v1/nodes/{_part(lease.lease_id)}/deadline", body)

    # ── what the broker itself asks ──────────────────────────────────────────────────────────────────────────────────

    def adopt(self, lease: Lease) -> None:
        """At the broker's start: let the lease's cluster process know our new address and token."""
        self._introduce(cluster_of(lease))

    async def access(self, lease: Lease) -> ClusterAccess:
        """Where doors reach the lease's cluster process.

        Raises:
            Unreachable: it runs no more (and the lease has ended), or it cannot be started.
        """
        cluster_id = cluster_of(lease)
        process = await self._living(cluster_id)
        if process is None:
            if lease.state in ENDED_STATES:
                raise Unreachable(f"{lease.name} has ended, and its cluster process with it")
            process = await self._running(cluster_id)
        return ClusterAccess(cluster_id=cluster_id, url=process.url, token=process.token)

    async def node(self, lease: Lease) -> NodeView | None:
        """The node as its cluster process sees it now; None when that cannot be told quickly."""
        process = self._file(cluster_of(lease)) if lease.address is not None else None
        if process is None or lease.state in ENDED_STATES:
            return None
        try:
            path = f"/v1/nodes/{_part(lease.lease_id)}"
            reply = await self._call(process, "GET", path, timeout_s=GLANCE_TIMEOUT_S)
            return msgspec.json.decode(reply, type=NodeView)
        except (NodeError, msgspec.DecodeError):
            return None

    async def interrupt(self, lease: Lease, run_id: str, save_for: str = "") -> None:
        """Interrupt a cell run. `save_for`: why, when what it has declared as outputs is to be brought over."""
        process = await self._living(cluster_of(lease))
        if process is not None:
            why = f"?save_for={_part(save_for)}" if save_for else ""
            await self._call(process, "POST", f"/v1/runs/{_part(run_id)}/interrupt{why}")

    async def dask(self, lease: Lease) -> DaskView | None:
        """How Dask runs on the lease's cluster; None when that cannot be told quickly."""
        process = self._file(cluster_of(lease))
        if process is None:
            return None
        try:
            reply = await self._call(process, "GET", "/v1/dask", timeout_s=GLANCE_TIMEOUT_S)
            return msgspec.json.decode(reply, type=DaskView)
        except (NodeError, msgspec.DecodeError):
            return None

    async def start_dask(self, lease: Lease, wish: DaskWish) -> None:
        """Have Dask run on the lease's cluster.

        Raises:
            NodeError: the cluster process does not take the order.
        """
        await self._call(await self._running(cluster_of(lease)), "PUT", "/v1/dask", wish)

    async def retire(self, lease: Lease, reason: str) -> None:
        """Have the node's Dask workers retired.

        Raises:
            NodeError: the cluster process does not take the order.
        """
        body = DaskRetire(lease_id=lease.lease_id, reason=reason)
        await self._call(await self._running(cluster_of(lease)), "POST", "/v1/dask/retire", body)

    async def keep_alive(self, leases: list[Lease]) -> None:
        """Start again what has died although it still has nodes, and give it its nodes back."""
        for lease in leases:
            if lease.state not in ATTACHED or lease.address is None or self._file(cluster_of(lease)) is None:
                continue  # without its file it has never run, or is just being started
            if await self._is_there(lease):
                continue
            log.warning("the cluster process of %s has gone; starting it again", lease.name)
            try:
                await self.attach(
                    lease, self_stop=self._self_stops.get(lease.lease_id), resume=lease.ready_ms is not None
                )
            except NodeError as error:
                log.warning("not yet: %s", error)

    async def end_unused(self, open_leases: list[Lease]) -> None:
        """Ask the processes whose leases have all ended to end now, instead of after their own idle time."""
        used = {cluster_of(lease) for lease in open_leases}
        for folder in sorted((self._folders.state / "clusters").glob("*/cluster.json")):
            process = self._file(folder.parent.name)
            if process is not None and folder.parent.name not in used:
                # One that has ended already cannot be reached, and one that hangs ends by its idle time.
                with contextlib.suppress(NodeError):
                    await self._call(process, "POST", "/v1/shutdown", timeout_s=GLANCE_TIMEOUT_S)

    async def _is_there(self, lease: Lease) -> bool:
        """Whether the process runs; one that does not answer now may still do so."""
        try:
            return await self._living(cluster_of(lease)) is not None
        except Unreachable as error:
            log.warning("%s", error)
            return True

    async def aclose(self) -> None:
        """Close connections; the processes go on."""
        await self._http.aclose()

    # ── processes ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _running(self, cluster_id: str) -> ClusterFile:
        """The living process, started if need be; never two for one cluster."""
        async with self._starting.setdefault(cluster_id, asyncio.Lock()):
            process = await self._living(cluster_id)
            if process is not None:
                return process
            return await self._start(cluster_id)

    async def _start(self, cluster_id: str) -> ClusterFile:
        folder = self._folders.cluster(cluster_id)
        write_private(folder / "start.json", msgspec.json.encode(StartFile(cluster_id=cluster_id, direct=self._direct)))
        self._introduce(cluster_id)
        (folder / "cluster.json").unlink(missing_ok=True)
        child = _spawn(folder)
        deadline = self._clock.monotonic_s() + START_TIMEOUT_S
        while self._clock.monotonic_s() < deadline:
            process = await self._living(cluster_id)
            if process is not None:
                log.info("cluster process %s runs (pid %d)", cluster_id, process.pid)
                return process
            if child.poll() is not None:
                raise Unreachable(
                    f"the cluster process {cluster_id} ended at its start (exit code {child.returncode}); "
                    f"{folder / 'cluster.log'} tells more"
                )
            await self._clock.sleep(POLL_S)
        raise Unreachable(f"the cluster process {cluster_id} did not answer within {START_TIMEOUT_S:g} s of its start")

    def _introduce(self, cluster_id: str) -> None:
        """Write our address and a token for facts into the cluster's own folder; an older token is void from now on."""
        token = self._tokens.clusters.setdefault(cluster_id, secrets.token_urlsafe(32))
        self._redactor.learn(token)
        access = BrokerAccess(url=self._broker_url, token=token)
        write_private(self._folders.cluster(cluster_id) / "broker.json", msgspec.json.encode(access))

    async def _living(self, cluster_id: str) -> ClusterFile | None:
        """The process that `cluster.json` names, when it answers to its token; None when there is none.

        Raises:
            Unreachable: the process is there and does not answer (it may be stopped); a second one would do harm.
        """
        process = self._file(cluster_id)
        if process is None:
            return None
        try:
            await self._call(process, "GET", "/v1/health")
        except NodeError:
            if is_cluster_process(process.pid, self._folders.cluster(cluster_id)):
                raise Unreachable(
                    f"the cluster process {cluster_id} (pid {process.pid}) is there but does not answer"
                ) from None
            return None
        return process

    def _file(self, cluster_id: str) -> ClusterFile | None:
        try:
            content = (self._folders.cluster(cluster_id) / "cluster.json").read_bytes()
            file = msgspec.json.decode(content, type=ClusterFile)
        except (OSError, msgspec.DecodeError):
            return None
        self._redactor.learn(file.token)
        return file

    async def _call(
        self, process: ClusterFile, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> bytes:
        headers = {"Authorization": f"Bearer {process.token}"}
        content = None
        if body is not None:
            content = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        try:
            reply = await self._http.request(
                method,
                process.url + path,
                content=content,
                headers=headers,
                timeout=httpx.USE_CLIENT_DEFAULT if timeout_s is None else timeout_s,
            )
        except httpx.HTTPError as error:
            raise Unreachable(
                f"the cluster process at {process.url} does not answer ({type(error).__name__})"
            ) from None
        if reply.is_error:
            raise NodeError(f"the cluster process refused {method} {path}: {_words(reply)}")
        return reply.content


def cluster_of(lease: Lease) -> str:
    """The cluster a lease belongs to: the named one, or its own."""
    return lease.cluster_id or lease.lease_id


def is_cluster_process(pid: int, folder: Path) -> bool:
    """Whether this pid is a cluster process for this folder (a pid may have been used again by another program)."""
    try:
        process = psutil.Process(pid)
        return str(folder) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """What of our environment a cluster process gets."""
    return {
        name: value for name, value in environment.items() if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }


def _spawn(folder: Path) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "jupyter_gpumarket.cluster", "--folder", str(folder)]
    path = folder / "cluster.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            cwd="/",
            env=scrubbed(os.environ),
            start_new_session=True,
            close_fds=True,
        )
    finally:
        os.close(descriptor)
    # Takes its exit status whenever it ends, so that no zombie looks like a living process.
    threading.Thread(target=child.wait, name=f"cluster-{child.pid}", daemon=True).start()
    return child


def _words(reply: httpx.Response) -> str:
    try:
        return msgspec.json.decode(reply.content, type=Problem).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return f"status {reply.status_code}"


def _part(text: Any) -> str:
    return quote(str(text), safe="")
