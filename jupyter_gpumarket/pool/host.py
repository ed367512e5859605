"""The host process: `python -m jupyter_gpumarket.pool host --registry URL --token-file F --folder D`.

It dials out to the registry only: a report every few seconds, whose answer holds all that is to be served and ended. So
lost, doubled and late messages do no harm: each answer is the whole truth, and newer ones are told by their version.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncssh
import httpx
import msgspec

from jupyter_gpumarket.api.pool import HostOffer, HostReport, Joined, Joining, Orders, ServeOrder
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.pool import guard, host_facts, host_ssh
from jupyter_gpumarket.pool.draining import PID_FILE, Draining
from jupyter_gpumarket.pool.host_leases import HOST_MARK, HostLease, adopt_orphans, kill_marked, remove_folder
from jupyter_gpumarket.pool.registry import held, stop_request
from jupyter_gpumarket.pool.registry_client import RegistryClient, RegistrySays

log = logging.getLogger(__name__)
RETRY_FIRST_S = 0.3
RETRY_MOST_S = 5.0


class HostOptions(Record, frozen=True, kw_only=True):
    """How a host is to run. `price_nusd_hour` is for one GPU, or for the machine where it has none."""

    registry: str
    token_file: Path
    folder: Path
    price_nusd_hour: int
    name: str = ""
    region: str = ""
    country: str = ""
    listen: str = ""
    advertise: str = ""
    ca_file: Path | None = None
    fingerprint: str = ""
    split: bool = False
    gpus: tuple[int, ...] | None = None
    login: str = ""
    grace_s: float = 0.0
    until_stdin_ends: bool = False


class Identity(Record, frozen=True, kw_only=True):
    """What a host keeps over restarts: its id, and the token that the registry gave it."""

    host_id: str
    host_token: str = ""


class Forgotten(Exception):
    """The registry does not know this host's token any more."""


class Host:
    """One machine's leases."""

    def __init__(self, options: HostOptions, identity: Identity, offers: tuple[HostOffer, ...]) -> None:
        self._folder = options.folder
        self._host_id = identity.host_id
        self._gpus = {offer.offer_id: offer.gpus for offer in offers}
        self._leases: dict[str, HostLease] = {}
        self._boot_id = secrets.token_hex(8)
        self._sequence = 0
        self._registry_boot = ""
        self._version = -1
        self._leaves_ms: int | None = None
        self._news = asyncio.Event()
        self._left = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def leases_named(self, name: str, login: str) -> list[HostLease]:
        """The lease with this id; all of them for a common `login` name (some, with commas), where the host has one."""
        if name and name in login.split(","):
            return list(self._leases.values())
        return [lease for lease in (self._leases.get(name),) if lease is not None]

    def report(self, *, wait_s: float = 0.0, leaving: bool = False) -> HostReport:
        """How things stand now."""
        self._sequence += 1
        return HostReport(
            boot_id=self._boot_id,
            sequence=self._sequence,
            leases=tuple(lease.report() for lease in self._leases.values()),
            seen_version=self._version,
            wait_s=wait_s,
            leaving=leaving,
            leaves_ms=self._leaves_ms,
        )

    async def emptied(self) -> None:
        """Return when no lease is left on it."""
        while any(lease.state != "gone" for lease in self._leases.values()):
            self._left.clear()
            await self._left.wait()

    def leave_at(self, at_ms: int) -> None:
        """Take no new lease, and tell the registry at once when this host goes."""
        self._leaves_ms = at_ms
        self._news.set()

    def obey(self, orders: Orders, told: HostReport) -> None:
        """Do what the registry wants; what it does not mention any more is over. `told` is the report it answers."""
        if orders.boot_id == self._registry_boot and orders.version < self._version:
            return
        self._registry_boot, self._version = orders.boot_id, orders.version
        wanted = {order.rental_id: order for order in orders.serve}
        for order in orders.serve:
            self._serve(order)
        for rental_id in orders.end:
            if rental_id not in self._leases:
                self._remember_gone(rental_id)
        confirmed = {lease.rental_id for lease in told.leases if lease.state == "gone"}
        for rental_id, lease in list(self._leases.items()):
            if lease.state == "gone":
                if rental_id in confirmed and rental_id not in wanted and rental_id not in orders.end:
                    del self._leases[rental_id]
            elif rental_id not in wanted:
                self._end(lease, "released")

    async def news(self) -> None:
        """Wait until there is something to report at once."""
        await self._news.wait()
        self._news.clear()

    async def end_all(self, why: str) -> None:
        """End every lease; returns when all are gone."""
        await asyncio.gather(*(lease.end(why) for lease in self._leases.values()))

    def _serve(self, order: ServeOrder) -> None:
        known = self._leases.get(order.rental_id)
        if known is not None:
            if known.order != order and known.state in ("starting", "serving"):
                known.set_order(order)
            return
        holder = [x for x in self._leases.values() if x.order.offer_id == order.offer_id and x.state != "gone"]
        if holder:
            return
        lease = HostLease(
            order,
            self._folder / "leases" / order.rental_id,
            self._gpus.get(order.offer_id, ()),
            self._host_id,
            self._changed,
        )
        self._leases[order.rental_id] = lease
        self._do(lease.start())

    def _remember_gone(self, rental_id: str) -> None:
        """Confirm the end of a lease that never began here."""
        order = ServeOrder(rental_id=rental_id, offer_id=f"{self._host_id}.none", ssh_public_key="none none")
        lease = HostLease(order, self._folder / "leases" / rental_id, (), self._host_id, self._changed)
        self._leases[rental_id] = lease
        self._do(lease.end("it never began"))

    def _end(self, lease: HostLease, why: str) -> None:
        if not lease.is_ending:
            lease.is_ending = True
            self._do(self._end_until_gone(lease, why))

    async def _end_until_gone(self, lease: HostLease, why: str) -> None:
        while lease.state != "gone":
            try:
                await lease.end(why)
            except OSError as error:
                log.warning("lease %s is not gone yet: %s", lease.order.rental_id, error)
                await asyncio.sleep(1.0)

    def _changed(self, lease: HostLease) -> None:
        self._news.set()
        if lease.state == "gone":
            self._left.set()
        if lease.state == "ending":
            self._end(lease, lease.detail)

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def run_host(options: HostOptions) -> None:
    """Serve until SIGTERM or SIGINT, and for `grace_s` after it; then end all leases, tell the registry, and leave.

    Raises:
        ConfigError: a setting is wrong, the registry refuses this host, or another process has the folder.
    """
    guard.only_for_owner(options.folder)
    with held(options.folder / "lock"):
        # Of an earlier life; the process of that number may be anybody's now, and must not be told to drain.
        (options.folder / PID_FILE).unlink(missing_ok=True)
        identity = known_identity(options.folder)
        adopt_orphans()
        sweep(options.folder, identity.host_id)
        machine = await asyncio.to_thread(host_facts.look, options.folder)
        offers = host_facts.offers_of(
            machine,
            identity.host_id,
            price_nusd_hour=options.price_nusd_hour,
            split=options.split,
            only=options.gpus,
        )
        host = Host(options, identity, offers)
        advertised = options.advertise or own_address(options.registry)
        address, port = guard.split_address(options.listen or f"{default_listen(advertised)}:0")
        key = host_ssh.host_key(options.folder / "ssh_host_ed25519_key")
        acceptor = await host_ssh.listen(address, port, key, lambda name: host.leases_named(name, options.login))
        joining = Joining(
            host_id=identity.host_id,
            name=options.name or socket.gethostname(),
            host=advertised,
            port=acceptor.get_port(),
            ssh_host_key=" ".join(key.export_public_key().decode().split()[:2]),
            offers=offers,
            region=options.region,
            country=options.country,
        )
        stop = stop_request(with_stdin=options.until_stdin_ends)
        Draining(host, options.folder, stop, grace_s=options.grace_s).listen()
        async with RegistryClient(options.registry, await pinned(options)) as registry:
            serving = asyncio.create_task(serve(host, registry, joining, options))
            await asyncio.wait({serving, asyncio.ensure_future(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)
            await leave(host, registry, acceptor)


async def serve(host: Host, registry: RegistryClient, joining: Joining, options: HostOptions) -> None:
    """Join, then report and obey until cancelled; join again when the registry has forgotten this host."""
    announce(joining)
    while True:
        heartbeat_s = await join(registry, joining, options, known_identity(options.folder))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch(host, registry, heartbeat_s))
                tasks.create_task(tell_news(host, registry))
        except* Forgotten:
            log.warning("the registry does not know this host any more; joining anew")


async def join(registry: RegistryClient, joining: Joining, options: HostOptions, identity: Identity) -> float:
    """Become known to the registry; waits for one that is not there yet. Seconds between heartbeats."""
    pause_s = RETRY_FIRST_S
    while True:
        try:
            return (await introduce(registry, joining, options, identity)).heartbeat_s
        except httpx.HTTPError as error:
            log.warning("the registry %s does not answer (%s); trying again", options.registry, type(error).__name__)
        except RegistrySays as said:
            if said.status < 500 and said.status != 429:
                raise ConfigError(f"the registry {options.registry} refuses this host: {said.message}") from None
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
        pause_s = min(RETRY_MOST_S, pause_s * 2)


async def introduce(registry: RegistryClient, joining: Joining, options: HostOptions, identity: Identity) -> Joined:
    """Join for the first time with the join token, later with the host's own."""
    if identity.host_token:
        registry.use_token(identity.host_token)
        try:
            known: Joined = await registry.call("PUT", f"/v1/hosts/{joining.host_id}", joining, Joined)
            return known
        except RegistrySays as said:
            if said.status != 401:
                raise
            # A registry that has lost its memory, or another one: join it anew.
    registry.use_token(read_token(options.token_file))
    joined: Joined = await registry.call("POST", "/v1/hosts", joining, Joined)
    kept = msgspec.structs.replace(identity, host_token=joined.host_token)
    write_private(options.folder / "host.json", msgspec.json.encode(kept))
    registry.use_token(joined.host_token)
    return joined


async def watch(host: Host, registry: RegistryClient, heartbeat_s: float) -> None:
    """The heartbeat: report, and wait at the registry for orders."""
    pause_s = RETRY_FIRST_S
    while True:
        if await exchange(host, registry, wait_s=heartbeat_s):
            pause_s = RETRY_FIRST_S
        else:
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311
            pause_s = min(RETRY_MOST_S, pause_s * 2)


async def tell_news(host: Host, registry: RegistryClient) -> None:
    """What happens here is reported at once: billing begins and ends with it."""
    while True:
        await host.news()
        await exchange(host, registry, wait_s=0.0)


async def exchange(host: Host, registry: RegistryClient, *, wait_s: float) -> bool:
    """One report and the orders that answer it; False when the registry was not to be had."""
    told = host.report(wait_s=wait_s)
    try:
        orders = await registry.call("POST", f"/v1/hosts/{registry.host_id}/report", told, Orders, wait_s=wait_s)
    except httpx.HTTPError as error:
        log.warning("the registry does not answer (%s); leases go on", type(error).__name__)
        return False
    except RegistrySays as said:
        if said.status in (401, 404):
            raise Forgotten from None
        log.warning("the registry answered %s: %s", said.status, said.message)
        return False
    host.obey(orders, told)
    return True


async def leave(host: Host, registry: RegistryClient, acceptor: asyncssh.SSHAcceptor) -> None:
    """End everything, then say so."""
    acceptor.close()
    await host.end_all("the host was shut down")
    with contextlib.suppress(httpx.HTTPError, RegistrySays):
        told = host.report(leaving=True)
        await registry.call("POST", f"/v1/hosts/{registry.host_id}/report", told, Orders)


def known_identity(folder: Path) -> Identity:
    """Who this host is, made on first use."""
    file = folder / "host.json"
    if file.exists():
        try:
            return msgspec.json.decode(file.read_bytes(), type=Identity)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{file} cannot be read: {error}; remove it to join anew") from None
    identity = Identity(host_id="h" + secrets.token_hex(6))
    write_private(file, msgspec.json.encode(identity))
    return identity


def sweep(folder: Path, host_id: str) -> None:
    """Remove what an earlier life left when it was killed: its processes first, then their folders."""
    while kill_marked(HOST_MARK, host_id):
        log.warning("killed processes of an earlier life of this host")
    leases = folder / "leases"
    leases.mkdir(mode=0o700, exist_ok=True)
    for left in leases.iterdir():
        log.warning("removing %s of an earlier life of this host", left)
        remove_folder(left)


def own_address(registry: str) -> str:
    """This machine's address as seen on the way to the registry."""
    parts = urlsplit(registry)
    if not parts.hostname:
        raise ConfigError(f"--registry {registry!r} is not a URL like http://127.0.0.1:8799")
    try:
        family, kind, _, _, address = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"no way to {parts.hostname}: {error}; name this machine's address with --advertise"
        ) from None


def default_listen(advertised: str) -> str:
    """Only loopback for a loopback registry; else every address, because the advertised one may be another's (NAT)."""
    return "127.0.0.1" if guard.is_loopback(advertised) else "0.0.0.0"  # noqa: S104


def read_token(file: Path) -> str:
    """The join token.

    Raises:
        ConfigError: the file is missing or can be read by others.
    """
    try:
        if file.stat().st_mode & 0o077:
            raise ConfigError(f"{file} can be read by others; run `chmod 600 {file}`")
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise ConfigError(f"the token file {file}: {error.strerror}") from None


async def pinned(options: HostOptions) -> str:
    """The registry's certificate to trust, PEM; empty for plain HTTP on loopback.

    Raises:
        ConfigError: HTTP beyond loopback, or HTTPS without anything to pin.
    """
    parts = urlsplit(options.registry)
    if parts.scheme == "http":
        if not guard.is_loopback(parts.hostname or ""):
            raise ConfigError(f"{options.registry} would carry tokens in the clear; use https:// and --fingerprint")
        return ""
    if options.ca_file is not None:
        return options.ca_file.read_text("utf-8")
    if not options.fingerprint:
        raise ConfigError("an https:// registry needs --fingerprint (from its join command) or --ca-file")
    return await asyncio.to_thread(guard.fetch_pinned, parts.hostname or "", parts.port or 443, options.fingerprint)


def announce(joining: Joining) -> None:
    """Tell on the terminal what is offered."""
    for offer in joining.offers:
        facts = offer.facts
        what = f"{facts.gpu_count} × {facts.gpu_raw}" if facts.gpu_count else f"CPU only, {facts.cpu_model}"
        sys.stdout.write(f"offering {offer.offer_id}: {what}, {facts.cpu_cores} cores, {facts.memory_gib:.0f} GiB\n")
    sys.stdout.write(f"leases are served on {joining.host}:{joining.port}\n")
    sys.stdout.flush()
