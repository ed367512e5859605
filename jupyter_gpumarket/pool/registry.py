"""The registry process: `python -m jupyter_gpumarket.pool registry --folder D`."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from jupyter_gpumarket.api.pool import Quota
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.pool import guard
from jupyter_gpumarket.pool.registry_routes import MAX_BODY_BYTES, application
from jupyter_gpumarket.pool.registry_service import RegistryService
from jupyter_gpumarket.pool.registry_store import RegistryStore, UserRow

log = logging.getLogger(__name__)
FIRST_USER = "default"
PORT_FILE = "port"


class RegistryOptions(Record, frozen=True, kw_only=True):
    """How a registry is to run."""

    folder: Path
    listen: str = "127.0.0.1:0"
    advertise: str = ""
    require_tls: bool = False
    no_tls: bool = False
    heartbeat_s: float = 3.0
    lost_after_s: float = 30.0
    until_stdin_ends: bool = False


class RegistryFile(Record, frozen=True, kw_only=True):
    """`registry.json`, 0600: all that users and hosts of this machine need. `ca`: the certificate to pin, or empty."""

    url: str
    user_token: str
    join_token: str
    ca: str = ""
    ca_file: str = ""
    fingerprint: str = ""
    pid: int = 0


async def run_registry(options: RegistryOptions) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigError: the folder is in use, or the address may not be listened on.
    """
    guard.only_for_owner(options.folder)
    with held(options.folder / "lock"):
        host, port = guard.split_address(options.listen)
        tls = not options.no_tls and guard.needs_tls([host], required=options.require_tls)
        guard.refuse_plain(host, tls=tls)
        store = RegistryStore(options.folder / "registry.sqlite")
        join_token = guard.keep_token(options.folder / "join.token")
        user_token = first_user(store, options.folder)
        service = RegistryService(
            store,
            SystemClock(),
            join_token_digest=guard.digest(join_token),
            heartbeat_s=options.heartbeat_s,
            lost_after_s=options.lost_after_s,
        )
        certificate = tls_files(options, host) if tls else None
        server = HTTPServer(
            application(service),
            ssl_options=None if certificate is None else server_tls(*certificate),
            max_body_size=MAX_BODY_BYTES,
            max_header_size=65536,
            idle_connection_timeout=120,
        )
        sockets = bound_sockets(options.folder, host, port)
        server.add_sockets(sockets)
        bound = int(sockets[0].getsockname()[1])
        write_private(options.folder / PORT_FILE, str(bound).encode())
        shown = described(options, (host, bound), certificate, user_token=user_token, join_token=join_token)
        write_private(options.folder / "registry.json", msgspec.json.encode(shown))
        announce(shown, options.folder)
        try:
            await until_told_to_stop(service, stop_request(with_stdin=options.until_stdin_ends))
        finally:
            server.stop()
            await asyncio.wait_for(server.close_all_connections(), 5)
            store.close()


def bound_sockets(folder: Path, host: str, port: int) -> list[socket.socket]:
    """Listen on the wished port; for "any free one" on that of last time, so that a restarted registry is found again.

    Raises:
        ConfigError: the address is not to be had.
    """
    last = 0
    with contextlib.suppress(OSError, ValueError):
        last = int((folder / PORT_FILE).read_text("utf-8"))
    try:
        return bind_sockets(port or last, host)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port or last}: {error.strerror}. Stop what listens there, or name another port; "
            "hosts and users then need the new URL"
        ) from None


def first_user(store: RegistryStore, folder: Path) -> str:
    """The token of the user that every registry begins with."""
    token = guard.keep_token(folder / "user.token")
    known = store.user(FIRST_USER)
    if known is None or not guard.same(token, known.token_digest):
        store.put_user(UserRow(user=FIRST_USER, token_digest=guard.digest(token)))
    return token


def add_user(folder: Path, user: str, granted: Quota) -> str:
    """Make a user, or change what one may have; the token of a new one, or an empty text."""
    guard.only_for_owner(folder)
    store = RegistryStore(folder / "registry.sqlite")
    try:
        known = store.user(user)
        if known is not None:
            store.put_user(msgspec.structs.replace(known, granted=granted))
            return ""
        token = guard.new_token()
        store.put_user(UserRow(user=user, token_digest=guard.digest(token), granted=granted))
        return token
    finally:
        store.close()


def tls_files(options: RegistryOptions, host: str) -> tuple[Path, Path]:
    extra = [options.advertise] if options.advertise else []
    return guard.make_certificate(options.folder, guard.advertised_names(host, extra))


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


def described(
    options: RegistryOptions,
    bound: tuple[str, int],
    certificate: tuple[Path, Path] | None,
    *,
    user_token: str,
    join_token: str,
) -> RegistryFile:
    """What goes into `registry.json`."""
    host, port = bound
    name = options.advertise or (guard.advertised_names(host, [])[-1] if host in guard.ANY_ADDRESS else host)
    name = f"[{name}]" if ":" in name else name
    pem = "" if certificate is None else certificate[0].read_text("utf-8")
    return RegistryFile(
        url=f"{'https' if certificate else 'http'}://{name}:{port}",
        user_token=user_token,
        join_token=join_token,
        ca=pem,
        ca_file="" if certificate is None else str(certificate[0].absolute()),
        fingerprint=guard.fingerprint(pem) if pem else "",
        pid=os.getpid(),
    )


def announce(shown: RegistryFile, folder: Path) -> None:
    """Tell on the terminal where the registry is, and how a machine joins. No token is printed."""
    pin = f" --fingerprint {shown.fingerprint}" if shown.fingerprint else ""
    sys.stdout.write(
        f"The pool registry listens at {shown.url}\n"
        f"A machine joins with (copy {folder / 'join.token'} to it as join.token, mode 0600):\n"
        f"    jupyter gpumarket host --registry {shown.url}{pin} --token-file join.token\n"
    )
    sys.stdout.flush()


async def until_told_to_stop(service: RegistryService, stop: asyncio.Event) -> None:
    """Run the timers until then."""
    ticking = asyncio.create_task(service.tick_forever())
    waiting = asyncio.create_task(stop.wait())
    await asyncio.wait({ticking, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if ticking.done():
        ticking.result()
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking


def stop_request(*, with_stdin: bool) -> asyncio.Event:
    """Set by SIGTERM, by SIGINT, and on wish when standard input ends: the starter may itself be killed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for what in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(what, stop.set)

    def read() -> None:
        if not os.read(0, 4096):
            loop.remove_reader(0)
            stop.set()

    if with_stdin:
        loop.add_reader(0, read)
    return stop


@contextlib.contextmanager
def held(lock: Path) -> Iterator[None]:
    """One registry per folder.

    Raises:
        ConfigError: another one has it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"another process has the folder {lock.parent}; stop it, or take another --folder") from None
    try:
        yield
    finally:
        os.close(descriptor)
