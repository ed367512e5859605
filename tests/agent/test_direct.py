"""The agent's door and its ways to other doors: real sockets, real TLS, guests that may come in and others."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import hashlib
import os
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from jupyter_gpumarket.agent import direct, door
from jupyter_gpumarket.agent.blobs import Blobs
from jupyter_gpumarket.agent.direct import DirectWays
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.cluster.authority import Identity, issue, member_name, new_authority
from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.door import (
    Answer,
    Ask,
    AskBlob,
    AskPort,
    BlobFetched,
    DoorProbed,
    DoorReport,
    DoorRules,
    FetchBlob,
    OpenDoor,
    ProbeDoor,
    Route,
    RouteBroken,
    UseRoutes,
    frame,
    read_frame,
)

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = new_authority("test", NOW)
DATA = os.urandom(3_000_000)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Member:
    """One node's direct ways, and what they tell."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.folder = NodeFolder(folder)
        self.folder.make()
        self.told: list[Any] = []
        self._news = asyncio.Event()
        self.ways = DirectWays(self.folder, Blobs(self.folder), self._tell)
        self.version = 0

    def _tell(self, key: tuple[str, ...], report: Any) -> None:
        del key
        self.told.append(report)
        self._news.set()

    async def until(self, kind: type, holds: Callable[[Any], bool] = lambda _: True) -> Any:
        async with asyncio.timeout(20):
            while not (found := [one for one in self.told if isinstance(one, kind) and holds(one)]):
                self._news.clear()
                await self._news.wait()
        return found[-1]

    async def open(self, authority: Identity = AUTHORITY) -> DoorReport:
        own = issue(authority, self.name, NOW)
        self.ways.obey(OpenDoor(ca=authority.certificate, certificate=own.certificate, key=own.key))
        return await self.until(DoorReport)

    async def rule(self, **rules: Any) -> None:
        self.version += 1
        self.ways.obey(DoorRules(version=self.version, **rules))
        await self.until(DoorReport, lambda report: report.version == self.version)

    def route(self, *ports: int) -> Route:
        port = next(one.port for one in reversed(self.told) if isinstance(one, DoorReport))
        return Route(name=member_name(self.name), address="127.0.0.1", port=port, ports=ports)

    def keep_blob(self, content: bytes = DATA, sha256: str = SHA256) -> None:
        self.folder.blob(sha256).write_bytes(content)

    async def fetch(self, route: Route, size: int = len(DATA)) -> BlobFetched:
        number = len(self.told) + 1000
        self.ways.obey(FetchBlob(number=number, sha256=SHA256, size=size, route=route, timeout_s=15.0))
        return await self.until(BlobFetched, lambda report: report.number == number)


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[tuple[Member, Member]]:
    """Two members of one cluster with open doors."""
    members = Member(tmp_path / "a", "lease-a"), Member(tmp_path / "b", "lease-b")
    for member in members:
        await member.open()
    yield members
    for member in members:
        member.ways.close()
    await asyncio.sleep(0.05)  # what was cancelled closes its sockets


def context_of(tmp_path: Path, identity: Identity | None) -> ssl.SSLContext:
    """A guest's TLS; without an identity it shows no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    (tmp_path / "ca").write_bytes(AUTHORITY.certificate)
    context.load_verify_locations(tmp_path / "ca")
    if identity is not None:
        (tmp_path / "guest").write_bytes(identity.certificate + identity.key)
        context.load_cert_chain(tmp_path / "guest")
    return context


async def asked(route: Route, context: ssl.SSLContext, ask: Ask) -> tuple[Answer, bytes]:
    """What a door answers, and what it sends then until it ends."""
    reader, writer = await asyncio.open_connection(
        route.address, route.port, ssl=context, server_hostname=member_name("lease-a")
    )
    try:
        writer.write(frame(ask))
        return await read_frame(reader, Answer), await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


async def test_who_has_no_certificate_of_the_cluster_is_refused(pair: tuple[Member, Member], tmp_path: Path) -> None:
    """Neither without a certificate nor with one of another authority does anybody get an answer."""
    one, _ = pair
    one.keep_blob()
    everybody = (member_name("lease-b"), "")
    await one.rule(blobs={SHA256: everybody}, ports=(one.route().port,), guests=everybody)
    other = new_authority("test", NOW)
    for identity in (None, issue(other, "lease-b", NOW)):
        with pytest.raises((OSError, EOFError, WireError)):
            await asked(one.route(), context_of(tmp_path, identity), AskBlob(sha256=SHA256, offset=0))


async def test_a_member_gets_only_what_the_rules_name(pair: tuple[Member, Member], tmp_path: Path) -> None:
    """A port or an input that was not allowed is refused; so is an input that was allowed to another member."""
    one, _ = pair
    one.keep_blob()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    context = context_of(tmp_path, issue(AUTHORITY, "lease-b", NOW))
    blob = AskBlob(sha256=SHA256, offset=0)

    assert "may not be reached" in (await asked(one.route(), context, AskPort(port=port)))[0].error
    await one.rule(ports=(port,), guests=(member_name("lease-b"),), blobs={SHA256: (member_name("lease-c"),)})
    assert (await asked(one.route(), context, AskPort(port=port)))[0].error == ""
    assert "may not be had" in (await asked(one.route(), context, blob))[0].error
    await one.rule(blobs={SHA256: (member_name("lease-b"),)})
    assert await asked(one.route(), context, blob) == (Answer(size=len(DATA)), DATA)
    assert "may not be reached" in (await asked(one.route(), context, AskPort(port=port)))[0].error
    server.close()


async def test_who_is_no_member_any_more_has_to_go(pair: tuple[Member, Member], tmp_path: Path) -> None:
    """Its certificate is as good as before: what it had open ends with rules that leave it out, and nothing opens."""
    one, _ = pair
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    context = context_of(tmp_path, issue(AUTHORITY, "lease-b", NOW))
    await one.rule(ports=(port,), guests=(member_name("lease-b"), member_name("lease-c")))
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", one.route().port, ssl=context, server_hostname=member_name("lease-a")
    )
    writer.write(frame(AskPort(port=port)))
    assert (await read_frame(reader, Answer)).error == ""
    await one.rule(ports=(port,), guests=(member_name("lease-b"),))
    writer.write(b"still in")
    assert await asyncio.wait_for(reader.readexactly(8), 10) == b"still in"

    await one.rule(ports=(port,), guests=(member_name("lease-c"),))

    assert await asyncio.wait_for(reader.read(), 10) == b""
    assert "may not be reached" in (await asked(one.route(), context, AskPort(port=port)))[0].error
    writer.close()
    server.close()


async def test_strangers_who_say_nothing_are_few_and_out_soon(
    pair: tuple[Member, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a hundred connections that show nothing all are closed within the time to greet, most of them at once."""
    monkeypatch.setattr(door, "GREETING_S", 1.0)
    one, _ = pair
    ends = [await asyncio.open_connection("127.0.0.1", one.route().port) for _ in range(100)]
    began = time.monotonic()
    silent = [asyncio.ensure_future(reader.read()) for reader, _ in ends]
    done, _ = await asyncio.wait(silent, timeout=0.7)
    assert len(done) >= 100 - door.MAX_STRANGERS
    with contextlib.suppress(OSError):
        await asyncio.wait_for(asyncio.gather(*silent, return_exceptions=True), 10)
    assert time.monotonic() - began < 5
    for _, writer in ends:
        writer.close()


async def test_a_door_by_another_name_is_no_way(pair: tuple[Member, Member]) -> None:
    """A probe believes the door that proves its name, not whoever answers at the address."""
    one, other = pair
    for number, name in enumerate(("lease-a", "lease-c")):
        addresses = ("127.0.0.1",)
        order = ProbeDoor(number=number, name=member_name(name), addresses=addresses, port=one.route().port)
        other.ways.obey(order)
    right = await other.until(DoorProbed, lambda report: report.number == 0)
    wrong = await other.until(DoorProbed, lambda report: report.number == 1)

    assert right.address == "127.0.0.1"
    assert right.round_trip_ms > 0
    assert wrong.address == ""
    assert "certificate verify failed" in wrong.error


async def test_where_nothing_may_listen_nothing_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the machine can forbid it: the report says so, and no socket listens."""
    monkeypatch.setenv(direct.ALLOWED, "no")
    before = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
    member = Member(tmp_path, "lease-a")
    report = await member.open()
    after = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}

    assert report.port == 0
    assert direct.ALLOWED in report.error
    assert after == before


async def test_a_broken_way_is_told_and_left_to_the_relay(pair: tuple[Member, Member]) -> None:
    """A connection whose way does not answer is handed back at once, untouched, and the next ones do not try."""
    one, other = pair
    route = one.route(20_001)
    other.ways.obey(UseRoutes(routes=(route,)))
    one.ways.close()
    sides: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = (
        asyncio.get_running_loop().create_future()
    )
    server = await asyncio.start_server(lambda *ends: sides.set_result(ends), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    reader, accepted = await sides
    writer.write(b"untouched")

    assert await other.ways.carry(20_001, reader, accepted) is False
    assert (await other.until(RouteBroken)).name == member_name("lease-a")
    assert await reader.read(100) == b"untouched"
    assert await other.ways.carry(20_001, reader, accepted) is False
    assert sum(isinstance(report, RouteBroken) for report in other.told) == 1
    writer.close()
    accepted.close()
    server.close()


async def test_many_connections_at_once_do_not_break_a_way(pair: tuple[Member, Member]) -> None:
    """A door lets few wait from one address, and workers of a shuffle all connect at once: all are carried directly."""
    one, other = pair
    far = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = far.sockets[0].getsockname()[1]
    await one.rule(ports=(port,), guests=(member_name("lease-b"),))
    other.ways.obey(UseRoutes(routes=(one.route(port),)))
    carrying: list[asyncio.Task[bool]] = []

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carrying.append(asyncio.ensure_future(other.ways.carry(port, reader, writer)))

    near = await asyncio.start_server(accepted, "127.0.0.1", 0)

    async def ask() -> bytes:
        reader, writer = await asyncio.open_connection(*near.sockets[0].getsockname())
        writer.write(b"there?")
        said = await asyncio.wait_for(reader.readexactly(6), 20)
        writer.close()
        await writer.wait_closed()
        return said

    assert await asyncio.gather(*(ask() for _ in range(40))) == [b"there?"] * 40
    assert await asyncio.gather(*carrying) == [True] * 40
    assert not [report for report in other.told if isinstance(report, RouteBroken)]
    near.close()
    far.close()
    ports = {port, one.route().port}
    async with asyncio.timeout(10):
        while {c.laddr.port for c in psutil.Process().net_connections() if c.status == "ESTABLISHED"} & ports:
            await asyncio.sleep(0.01)


async def test_an_input_comes_from_another_node_from_where_it_stopped(pair: tuple[Member, Member]) -> None:
    """What is here already is not sent again, and the whole is checked."""
    one, other = pair
    one.keep_blob()
    await one.rule(blobs={SHA256: (member_name("lease-b"),)})
    part = other.folder.blob(SHA256).with_suffix(".in")
    part.write_bytes(DATA[:2_000_000])
    sent = 0

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", one.route().port)

        async def back() -> None:
            nonlocal sent
            while data := await far_reader.read(65536):
                sent += len(data)
                writer.write(data)

        copying = asyncio.ensure_future(back())
        while data := await reader.read(65536):
            far_writer.write(data)
        far_writer.close()
        await copying
        writer.close()

    server = await asyncio.start_server(counted, "127.0.0.1", 0)
    way = Route(name=member_name("lease-a"), address="127.0.0.1", port=server.sockets[0].getsockname()[1])
    report = await other.fetch(way)
    server.close()

    assert (report.error, report.have) == ("", len(DATA))
    assert other.folder.blob(SHA256).read_bytes() == DATA
    assert 1_000_000 <= sent < 1_200_000


async def test_a_node_that_sends_something_else_is_found_out(pair: tuple[Member, Member]) -> None:
    """Bytes of another hash are thrown away and told as wrong; those that stop too soon are kept, and are no blob."""
    one, other = pair
    await one.rule(blobs={SHA256: (member_name("lease-b"),)})
    one.keep_blob(bytes(len(DATA)))
    wrong = await other.fetch(one.route())
    assert wrong.is_wrong
    assert "another hash" in wrong.error
    assert not list(other.folder.blobs.iterdir())

    one.keep_blob(DATA[:-1])
    short = await other.fetch(one.route())
    assert "another size" in short.error
    assert not other.folder.blob(SHA256).exists()
