"""How the broker process lives: one for each state folder, found through `broker.json`, ended by signal or idleness.

Killed at any moment it leaves nothing half done: all that matters is in the journal, and the next broker resumes it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from jupyter_gpumarket import __version__, config
from jupyter_gpumarket.api import API_VERSION
from jupyter_gpumarket.broker.compose import Broker, compose
from jupyter_gpumarket.broker.logs import Redactor, open_log
from jupyter_gpumarket.broker.pruning import prune
from jupyter_gpumarket.broker.purse import WATCH_EVERY_S
from jupyter_gpumarket.broker.routes import ROUTES
from jupyter_gpumarket.broker.web import MAX_BODY_BYTES, Gate, TokenBook, answer_of, application
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.config import Folders, private_folder, write_private
from jupyter_gpumarket.errors import ConfigError, GpuMarketError

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_ALREADY_RUNNING = 75  # EX_TEMPFAIL; doors know it
CLOSE_TIMEOUT_S = 10.0
UPKEEP_EVERY_S = 1.0
KEEP_ALIVE_EVERY_S = 3.0
SEARCH_EVERY_S = 120.0
IDLE_EVERY_S = 1.0
GROUPS_EVERY_S = 1.0


def main(argv: list[str] | None = None) -> int:
    """Run a broker to its end; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m jupyter_gpumarket.broker", description=__doc__)
    parser.add_argument("--state", type=Path, help="state folder (default: as configured)")
    parser.add_argument("--configuration", type=Path, help="configuration folder (default: as configured)")
    asked = parser.parse_args(argv)
    os.umask(0o077)
    try:
        folders = config.folders()
        if asked.state or asked.configuration:
            folders = Folders(
                private_folder(asked.state or folders.state),
                private_folder(asked.configuration or folders.configuration),
            )
        lock = take_lock(folders.broker_lock)
    except GpuMarketError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_FAILED
    if lock is None:
        return EXIT_ALREADY_RUNNING
    redactor = Redactor()
    redactor.learn_environment(os.environ)
    open_log(folders.broker_log, redactor)
    failure = failure_file(folders)
    try:
        asyncio.run(_live(folders, redactor))
    except GpuMarketError as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 -- said for people; a trace would hide it
        write_private(failure, msgspec.json.encode(answer_of(error)[1]))
        return EXIT_FAILED
    finally:
        os.close(lock)
    return 0


def failure_file(folders: Folders) -> Path:
    """Where a broker that cannot start tells doors why, as a `Problem`."""
    return folders.state / "broker.failure.json"


def take_lock(path: Path) -> int | None:
    """The state folder's lock, as an open descriptor; None when another broker holds it.

    Raises:
        ConfigError: the file system does not know locks, or the file cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open the lock {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{path} cannot be locked ({error.strerror}); put the state folder on a local disk "
            f"(set {config.ENVIRONMENT_PREFIX}HOME)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


async def _live(folders: Folders, redactor: Redactor) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    sockets = bind_sockets(0, "127.0.0.1")
    port = sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    tokens = TokenBook(door=secrets.token_urlsafe(32))
    redactor.learn(tokens.door)
    broker = compose(folders, tokens=tokens, redactor=redactor, url=url, stop=stop.set)
    server = HTTPServer(
        application(
            Gate(
                service=broker.service,
                tokens=tokens,
                hosts=frozenset({f"127.0.0.1:{port}", f"localhost:{port}"}),
                touched=broker.service.touch,
            ),
            ROUTES,
        ),
        max_body_size=MAX_BODY_BYTES,
        max_buffer_size=2 * MAX_BODY_BYTES,
        max_header_size=16 * 1024,
        idle_connection_timeout=120,
        body_timeout=30,
    )
    try:
        server.add_sockets(sockets)
        await broker.start()
        _announce(folders, url, tokens)
        journal, days = broker.parts.journal, broker.settings.keep_days
        await asyncio.to_thread(
            prune, folders.clusters, journal.leases(), now_ms=SystemClock().now_ms(), keep_days=days
        )
        log.info("broker %s (API %d) runs, pid %d, at %s", __version__, API_VERSION, os.getpid(), url)
        async with asyncio.TaskGroup() as tasks:
            beats = [tasks.create_task(beat) for beat in _beats(broker, folders, stop)]
            await stop.wait()
            for beat in beats:
                beat.cancel()
        log.info("broker ends; leases and cluster processes go on")
    finally:
        _withdraw(folders)
        server.stop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await server.close_all_connections()
        await broker.parts.clusters.end_unused(broker.parts.books.open_leases())
        await broker.aclose(CLOSE_TIMEOUT_S)


def _announce(folders: Folders, url: str, tokens: TokenBook) -> None:
    content = {
        "url": url,
        "token": tokens.door,
        "pid": os.getpid(),
        "version": __version__,
        "api_version": API_VERSION,
    }
    failure_file(folders).unlink(missing_ok=True)
    write_private(folders.broker_file, msgspec.json.encode(content))


def _withdraw(folders: Folders) -> None:
    """Take our file away. Where the whole folder was deleted and made anew meanwhile, another broker's lies there."""
    with contextlib.suppress(OSError, msgspec.DecodeError, AttributeError):
        if msgspec.json.decode(folders.broker_file.read_bytes()).get("pid") == os.getpid():
            folders.broker_file.unlink(missing_ok=True)


def configuration_state(folders: Folders) -> dict[str, int]:
    """What tells that settings or key files were changed: each file's time of change, ns."""
    state = {}
    with contextlib.suppress(OSError):
        for file in folders.configuration.iterdir():
            with contextlib.suppress(FileNotFoundError):
                state[file.name] = file.stat().st_mtime_ns
    return state


def _beats(broker: Broker, folders: Folders, stop: asyncio.Event) -> list[Coroutine[Any, Any, None]]:
    """What the broker does by itself, again and again."""
    service, parts = broker.service, broker.parts

    async def watch_money() -> None:
        try:
            await parts.purse.watch()
        except Exception as error:
            parts.purse.failure = f"{type(error).__name__}: {error}"
            raise
        parts.purse.failure = ""

    async def close_books() -> None:
        parts.closing.close_ended()
        await parts.closing.compare_due()

    async def keep_clusters() -> None:
        await parts.clusters.keep_alive(parts.books.open_leases())

    before = configuration_state(folders)

    async def end_when_idle() -> None:
        # Settings and keys are read at the start; the next call starts a broker that knows the new ones.
        if configuration_state(folders) != before and not parts.books.open_leases():
            log.info("settings or keys have changed and nothing is rented: ending, so that they count")
            stop.set()
        if service.is_idle(broker.settings.broker_idle_s):
            log.info("nothing is rented and nobody has called for %g s", broker.settings.broker_idle_s)
            stop.set()

    return [
        _beat("watching the budgets", WATCH_EVERY_S, watch_money),
        _beat("closing the books", UPKEEP_EVERY_S, close_books),
        _beat("keeping cluster processes alive", KEEP_ALIVE_EVERY_S, keep_clusters),
        _beat("looking for saved searches", SEARCH_EVERY_S, parts.alerts.look),
        _beat("keeping clusters at their size", GROUPS_EVERY_S, lambda: parts.groups.look(service)),
        _beat("looking whether anything is left to do", IDLE_EVERY_S, end_when_idle),
    ]


async def _beat(what: str, every_s: float, action: Callable[[], Awaitable[None]]) -> None:
    """Do something again and again. One failure is told once, and is no reason to stop looking after money."""
    told = ""
    while True:
        await asyncio.sleep(every_s)
        try:
            await action()
            told = ""
        except Exception as error:
            if str(error) != told:
                told = str(error)
                log.exception("%s failed; it is tried again", what)
