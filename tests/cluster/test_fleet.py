"""The Dask processes of a cluster, decided over nodes that are played."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jupyter_gpumarket.api import DaskWish
from jupyter_gpumarket.cluster.fleet import START_PATIENCE_S, Fleet
from jupyter_gpumarket.cluster.fleet_lacks import Standing, why
from jupyter_gpumarket.wire.messages import AgentReady, DaskReport, StartDask, StopDask


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"link": "refused", "link_detail": "another host key"}, "not used any more: another host key"),
        ({"phase": "preparing", "link": "connecting"}, "being set up (preparing)"),
        ({"link": "lost", "is_given_up": True, "code": False}, "its link is down, and its tasks run elsewhere"),
        ({"link": "lost", "worker": "running"}, "its link is down, and what runs there goes on until"),
        ({"heard": False}, "its agent has said nothing yet"),
        ({"code": False, "code_error": "no index has it", "scheduler": "none"}, "cannot have your modules"),
        ({"code": False, "code_trouble": "the agent has not answered"}, "not there yet: the agent has not answered"),
        ({"code": False}, "on their way"),
        ({"kept_out": "it cannot listen", "code": False}, "it cannot listen"),
        ({"is_retiring": True}, "retire"),
        ({"worker": "retired"}, "retire"),
        ({"scheduler": "none"}, "no scheduler is there yet"),
        ({"scheduler": "starting", "wait_s": 3.0}, "the scheduler is starting"),
        ({"worker": "starting", "ordered_s": 7.0}, "ordered 7 s ago"),
        ({"wait_s": 8.0, "last_end": "ImportError"}, "the next one starts in 8 s (the one before: ImportError)"),
        ({"reaches_scheduler": False}, "the way to the scheduler is not open yet"),
        ({}, "about to start"),
    ],
)
def test_what_keeps_a_worker_from_running_is_told(facts: dict[str, Any], words: str) -> None:
    """The first thing that stands in the way, from the link upwards."""
    assert words in why(Standing(**facts))


class Played:
    """A fleet with a clock of the test's, and nodes that say what the test wants."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.now_s = 1000.0
        clock: Any = SimpleNamespace(monotonic_s=lambda: self.now_s, now_ms=lambda: int(self.now_s * 1000))
        self.fleet = Fleet(folder, clock, random.Random(1), direct=False)
        self.orders: dict[str, list[Any]] = {}
        self.nodes = {name: self._node(name) for name in names}
        for node in self.nodes.values():
            self.fleet.join(node)

    def _node(self, name: str) -> Any:
        orders = self.orders[name] = []

        async def send(message: object) -> None:
            del message

        talk = SimpleNamespace(order=orders.append, send=send, inputs=SimpleNamespace(), listener=None)
        attach = SimpleNamespace(name=name, offer=None, notice=None, address=SimpleNamespace(host="198.51.100.1"))
        return SimpleNamespace(
            lease_id=name,
            link_state="up",
            link_detail="",
            phase="ready",
            is_leaving=False,
            code=SimpleNamespace(is_current=True, error="", trouble=""),
            record=SimpleNamespace(attach=attach, ready_ms=1),
            talk=talk,
        )

    def say(self, name: str, report: Any) -> None:
        self.nodes[name].talk.listener(report)

    def meet(self, name: str) -> None:
        self.say(name, AgentReady(python="3.11", versions={}, pid=1, started_ms=1, network="one loopback"))

    async def tend(self) -> None:
        """One look, as `run` has it."""
        looking = asyncio.create_task(self.fleet.run())
        await asyncio.sleep(0)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)

    def started(self, name: str) -> list[StartDask]:
        return [order for order in self.orders[name] if isinstance(order, StartDask)]

    def lacks(self) -> dict[str, str]:
        return {lack.lease_id: lack.reason for lack in self.fleet.view().lacks}


@pytest.fixture
def played(tmp_path: Path) -> Played:
    return Played(tmp_path, "a", "b")


async def scheduled(played: Played) -> None:
    """A scheduler runs on a, and workers were ordered on all nodes that have been met."""
    played.fleet.start(DaskWish())
    played.meet("a")
    await played.tend()
    played.say("a", DaskReport(name=played.started("a")[0].name, state="running", address="tls://127.0.0.1:1"))
    await played.tend()


async def test_each_node_without_a_worker_is_in_the_view_with_the_reason(played: Played) -> None:
    """And is not there any more once its worker runs."""
    assert played.lacks() == {}
    await scheduled(played)
    assert "ordered 0 s ago" in played.lacks()["a"]
    assert "has said nothing yet" in played.lacks()["b"]

    played.say("a", DaskReport(name=played.started("a")[-1].name, state="running"))
    assert list(played.lacks()) == ["b"]
    played.nodes["a"].link_state = "lost"
    assert "its link is down" in played.lacks()["a"]
    played.nodes["a"].link_state = "up"

    played.nodes["b"].code = SimpleNamespace(is_current=False, error="", trouble="the agent has not answered")
    played.meet("b")
    assert "the agent has not answered" in played.lacks()["b"]


async def test_how_workers_end_that_never_come_up_is_told(played: Played) -> None:
    """The first and the last line of what they said."""
    await scheduled(played)
    words = "it ended with code 1\nTraceback\nModuleNotFoundError: No module named 'x'"
    for _ in range(4):
        played.say("a", DaskReport(name=played.started("a")[-1].name, state="ended", reason=words))
        await played.tend()
    reason = played.lacks()["a"]
    assert "the next one starts in" in reason
    assert "it ended with code 1: ModuleNotFoundError: No module named 'x'" in reason


async def test_another_worker_is_ordered_where_the_agent_does_not_speak_of_one(played: Played) -> None:
    """An order that came to nothing without a word, like the end that was ordered then, keeps no place taken."""
    await scheduled(played)
    lost = played.started("a")[-1]
    for _ in range(2):
        played.now_s += START_PATIENCE_S + 1
        await played.tend()
        assert played.orders["a"][-1] == StopDask(name=lost.name) or played.started("a")[-1] != lost
    await played.tend()

    assert played.started("a")[-1].name != lost.name
    assert "its agent has not said" in played.lacks()["a"]


async def test_each_scheduler_has_an_authority_of_its_own(played: Played, tmp_path: Path) -> None:
    """So certificates of nodes that left before count no more; this process may be started anew without a change."""
    await scheduled(played)
    first, worker = played.started("a")
    assert worker.files["ca.pem"] == first.files["ca.pem"]

    played.say("a", DaskReport(name=first.name, state="ended", reason="killed"))
    for _ in range(2):
        await played.tend()
    second = played.started("a")[-1]
    assert second.role == "scheduler"
    assert second.files["ca.pem"] != first.files["ca.pem"]
    assert second.files["cert.pem"] != first.files["cert.pem"]

    again = Played(tmp_path, "a", "b")
    again.meet("a")
    again.say("a", DaskReport(name=second.name, state="running", address="tls://127.0.0.1:1"))
    await again.tend()
    assert again.started("a")[-1].files["ca.pem"] == second.files["ca.pem"]
