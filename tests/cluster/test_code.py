"""The user's own modules as the cluster process keeps them, and as it brings one node to them."""

from __future__ import annotations

import asyncio
import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.api import CodeWish, PackagePin, PackageWish
from jupyter_gpumarket.cluster import code as code_module
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.cluster.code import Code, NodeCode
from jupyter_gpumarket.errors import BadRequest, NodeError, Unreachable
from jupyter_gpumarket.models import CodeFile
from jupyter_gpumarket.notebook.sync import packed
from jupyter_gpumarket.wire.messages import AgentReady
from jupyter_gpumarket.wire.syncing import EMPTY, CodeTaken, TakeCode
from tests.cluster.conftest import until


class Desk:
    """A store, and wishes for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.blobs = BlobStore(folder / "blobs")
        self.code = Code(folder, self.blobs)

    def want(self, files: dict[str, str], *, sent: dict[str, str] | None = None) -> None:
        listed = tuple(CodeFile(path=path, sha256=_hash(text), size=len(text.encode())) for path, text in files.items())
        content = packed({_hash(text): text.encode() for text in (files if sent is None else sent).values()})
        writer = self.blobs.writer(hashlib.sha256(content).hexdigest())
        writer.write(content)
        writer.finish()
        self.code.want_files(CodeWish(files=listed, archive=hashlib.sha256(content).hexdigest()))

    def sent(self, archive: str) -> set[str]:
        """The contents in an archive for a node."""
        with zipfile.ZipFile(self.blobs.path(archive)) as packed:
            return {packed.read(name).decode() for name in packed.namelist()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_node_gets_only_what_it_lacks(desk: Desk) -> None:
    """By what it says it has: nothing, a former list, or something unknown; also after a restart of this process."""
    desk.want({"a.py": "1", "b.py": "2"})
    former = desk.code.tree
    desk.want({"a.py": "1", "b.py": "22"}, sent={"b.py": "22"})
    assert desk.sent(desk.code.archive(EMPTY)) == {"1", "22"}
    assert desk.sent(desk.code.archive(former)) == {"22"}
    assert desk.sent(Code(desk.folder, desk.blobs).archive(former)) == {"22"}
    assert desk.sent(desk.code.archive("f" * 64)) == {"1", "22"}


@pytest.mark.parametrize(
    ("files", "sent", "told"),
    [
        ({"../a.py": "1"}, None, "not a plain path"),
        ({"a.py": "1", "b.py": "2"}, {"a.py": "1"}, "the content of 'b.py' is not here"),
    ],
)
def test_a_wish_that_cannot_be_met_is_refused(
    desk: Desk, files: dict[str, str], sent: dict[str, str] | None, told: str
) -> None:
    """It names the file, and what was wanted before is wanted still."""
    desk.want({"good.py": "1"})
    before = desk.code.tree
    with pytest.raises(BadRequest, match=told):
        desk.want(files, sent=sent)
    assert desk.code.tree == before


class StandIn:
    """A node that answers orders as a test says."""

    def __init__(self, desk: Desk, answer: Callable[[TakeCode], CodeTaken | None]) -> None:
        self.desk = desk
        self.orders: list[TakeCode] = []
        self.installed: list[tuple[str, ...]] = []
        self.failing: Exception | None = None
        self.is_reached = True
        self.lost_archives = 0
        self._answer = answer
        self.code = NodeCode(
            desk.code,
            "n1",
            bring_blob=self._bring,
            order=self._order,
            install=self._install,
            is_reached=lambda: self.is_reached,
        )

    def meet(self, tree: str, started_ms: int = 1) -> None:
        self.code.hear(AgentReady(python="3.11", versions={}, pid=1, started_ms=started_ms, code=tree))

    async def settle(self) -> Any:
        task = asyncio.create_task(self.code.run())
        try:
            return await asyncio.wait_for(self.code.settled(), 20)
        finally:
            task.cancel()

    async def _bring(self, sha256: str) -> None:
        assert self.desk.blobs.has(sha256)
        if self.lost_archives:
            self.lost_archives -= 1
            await asyncio.Event().wait()

    def _order(self, order: TakeCode) -> None:
        self.orders.append(order)
        if (answer := self._answer(order)) is not None:
            asyncio.get_running_loop().call_soon(self.code.hear, answer)

    async def _install(self, pins: tuple[PackagePin, ...], where: tuple[str, ...]) -> None:
        failing, self.failing = self.failing, None
        if failing is not None:
            raise failing
        self.installed.append((*(pin.name for pin in pins), *where))


def taken(order: TakeCode) -> CodeTaken:
    return CodeTaken(tree=order.tree)


async def test_a_node_is_not_current_before_it_has_the_modules(desk: Desk) -> None:
    """Nothing wanted: at once. Else only when the agent has said so."""
    node = StandIn(desk, taken)
    assert node.code.is_current
    desk.want({"a.py": "1"})
    assert not node.code.is_current
    node.meet(EMPTY)
    assert (await node.settle()).state == "there"
    assert node.code.is_current
    assert len(node.orders) == 1


async def test_what_is_not_as_it_should_be_on_a_node_is_sent_whole_once(desk: Desk) -> None:
    """A node that cannot build on what it says it has gets everything; if that fails, its reason is told."""
    desk.want({"a.py": "1"})
    former = desk.code.tree
    desk.want({"a.py": "1", "b.py": "2"})
    node = StandIn(desk, lambda order: CodeTaken(tree=former, error="the disk is full"))
    node.meet(former)
    view = await node.settle()
    assert (view.state, view.error) == ("failed", "the disk is full")
    assert [desk.sent(order.archive) for order in node.orders] == [{"2"}, {"1", "2"}]
    assert not node.code.is_current


async def test_an_agent_that_says_nothing_is_named_and_asked_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its silence counts only while it can be reached; after too much of it whoever looks is told, until it answers."""
    monkeypatch.setattr(code_module, "ANSWER_S", 0.1)
    monkeypatch.setattr(code_module, "RETRY_S", 0.2)
    desk.want({"a.py": "1"})
    node = StandIn(desk, lambda _: None)
    node.is_reached = False
    node.meet(EMPTY)
    bringing = asyncio.create_task(node.code.run())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(until(lambda: node.code.trouble or len(node.orders) > 1), 0.5)

    node.is_reached = True
    await until(lambda: len(node.orders) == 2)
    assert "has not said whether it has your modules" in node.code.view().note
    assert node.code.view().state == "waiting"

    node.code.hear(taken(node.orders[-1]))
    await until(lambda: node.code.is_current and not node.code.trouble)
    assert node.code.view().note == ""
    bringing.cancel()


async def test_an_archive_that_does_not_arrive_is_sent_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that never says that it has the archive holds nothing up for ever, either."""
    monkeypatch.setattr(code_module, "ANSWER_S", 0.1)
    monkeypatch.setattr(code_module, "RETRY_S", 0.01)
    desk.want({"a.py": "1"})
    node = StandIn(desk, taken)
    node.lost_archives = 1
    node.meet(EMPTY)
    assert (await node.settle()).state == "there"
    assert (node.lost_archives, len(node.orders)) == (0, 1)


async def test_a_nodes_word_names_no_file_of_ours(desk: Desk) -> None:
    """A hostile answer in place of a hash counts as nothing; so does an agent that cannot sync, which is told."""
    desk.want({"a.py": "1"})
    node = StandIn(desk, taken)
    node.meet("../../../etc/passwd")
    assert "older than this version" in (await node.settle()).error
    assert not node.orders


async def test_packages_are_there_before_the_node_is_used(desk: Desk) -> None:
    """They are installed again after a cut, and what cannot be had is told."""
    desk.code.want_packages(PackageWish(packages=(PackagePin(name="tiny", version="1"),), where=("/here",)))
    node = StandIn(desk, taken)
    node.failing = Unreachable("cut")
    assert not node.code.is_current
    node.meet(EMPTY)
    assert (await node.settle()).state == "there"
    assert node.installed == [("tiny", "/here")]
    node.meet(EMPTY)
    assert node.code.is_current
    node.meet(EMPTY, started_ms=2)
    assert not node.code.is_current, "another agent may be in a folder without them"
    await node.settle()
    assert node.installed == 2 * [("tiny", "/here")]

    other = StandIn(desk, taken)
    other.failing = NodeError("no index has it")
    other.meet(EMPTY)
    assert (await other.settle()).error == "no index has it"
    assert not other.code.is_current


async def test_who_waits_can_be_cancelled_at_any_moment(desk: Desk) -> None:
    """Also in the very moment in which there is news, but not yet what is waited for."""
    desk.want({"a.py": "1"})
    node = StandIn(desk, taken)
    waiting = asyncio.create_task(node.code.settled())
    await asyncio.sleep(0)
    node.code._tell()
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting}, timeout=5)
    assert waiting.cancelled()


def test_what_cannot_be_had_is_not_wanted_any_more(desk: Desk) -> None:
    """A new package is forgotten, and of one that was there the former version is wanted again: no later node fails."""
    former = PackageWish(packages=(PackagePin(name="old", version="1"), PackagePin(name="other", version="1")))
    desk.code.want_packages(former)
    wish = PackageWish(packages=(PackagePin(name="old", version="2"), PackagePin(name="new", version="1")))
    desk.code.want_packages(wish)

    desk.code.unwant_packages(wish, former.packages)

    assert {(pin.name, pin.version) for pin in desk.code.record.packages} == {("old", "1"), ("other", "1")}
