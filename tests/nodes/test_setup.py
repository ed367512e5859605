"""Set-up on a machine behind a real sshd: what it brings, in which order, and what happens when something is amiss."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from jupyter_gpumarket.api import SetupStep
from jupyter_gpumarket.errors import CommandFailed, NodeError, VersionMismatch
from jupyter_gpumarket.models import SelfStop
from jupyter_gpumarket.nodes import Installed, NodeLink, SetupPlan, prepare
from jupyter_gpumarket.nodes.versions import Versions, ours
from jupyter_gpumarket.wire import messages
from jupyter_gpumarket.wire.peer import Peer
from tests.nodes.openssh import Sshd

LEASE = "lease-1"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Sshd]:
    """A node whose Python is pointed to; what set-up started there is ended with the test."""
    server = Sshd(tmp_path / "node", environment={"GPUMARKET_PYTHON": sys.executable}).start()
    yield server
    end_everything(server)
    server.stop()


@pytest.fixture
async def link(node: Sshd) -> AsyncIterator[NodeLink]:
    link = node.link()
    await link.connect()
    yield link
    await link.aclose()


def plan(**changes: object) -> SetupPlan:
    settings: dict[str, object] = {"lease_id": LEASE, "deadline_ms": deadline_ms(), "grace_s": 300, **changes}
    return SetupPlan(**settings)  # type: ignore[arg-type]


def deadline_ms(seconds: float = 600) -> int:
    return int((time.time() + seconds) * 1000)


def folder(node: Sshd) -> Path:
    return node.folder / "home" / ".gpumarket" / LEASE


def pid_of(node: Sshd, name: str) -> int:
    return int((folder(node) / f"{name}.pid").read_text())


def end_everything(node: Sshd) -> None:
    for name in ("watchdog", "agent"):
        with suppress(OSError, ValueError):
            os.kill(pid_of(node, name), signal.SIGKILL)


async def test_a_node_is_made_ready_and_its_agent_answers(node: Sshd, link: NodeLink) -> None:
    """After `prepare` the watchdog runs, the agent runs, and a conversation with it can be opened."""
    steps: list[SetupStep] = []
    installed = await prepare(link, plan(), steps.append)
    ready = await first_report(link, installed)

    assert isinstance(ready, messages.AgentReady)
    assert installed.versions == ours().packages
    assert Path(f"/proc/{pid_of(node, 'watchdog')}").exists()
    assert [s.name for s in steps if s.state != "running"] == ["watchdog", "python", "packages", "agent files", "agent"]
    assert set(installed.steps_ms) == {"watchdog", "python", "packages", "agent files", "agent"}


async def test_the_watchdog_is_the_first_thing_on_a_node(node: Sshd, link: NodeLink) -> None:
    """Even when nothing else can be done there, the timer that stops the node runs."""
    wanted = Versions(python="2.7.18", packages={"dask": "1.0"})
    with pytest.raises(VersionMismatch):
        await prepare(link, plan(wanted=wanted), ignore)

    assert Path(f"/proc/{pid_of(node, 'watchdog')}").exists()
    assert not (folder(node) / "agent.pid").exists()


async def test_a_second_run_finds_everything_there(node: Sshd, link: NodeLink) -> None:
    """`prepare` again starts nothing twice, sends nothing again, and gives the same answer."""
    first = await prepare(link, plan(), ignore)
    pids = pid_of(node, "watchdog"), pid_of(node, "agent")
    steps: list[SetupStep] = []
    second = await prepare(link, plan(), steps.append)

    assert (pid_of(node, "watchdog"), pid_of(node, "agent")) == pids
    assert {s.name for s in steps if s.state == "skipped"} == {"watchdog", "packages", "agent files", "agent"}
    assert second.attach_command == first.attach_command


async def test_a_half_finished_run_is_completed(node: Sshd, link: NodeLink) -> None:
    """What died or was lost since the first run is brought back, and only that."""
    await prepare(link, plan(), ignore)
    watchdog = pid_of(node, "watchdog")
    os.kill(pid_of(node, "agent"), signal.SIGKILL)
    (folder(node) / "app.zip").unlink()
    steps: list[SetupStep] = []
    installed = await prepare(link, plan(), steps.append)

    assert {s.name for s in steps if s.state == "done"} == {"python", "agent files", "agent"}
    assert pid_of(node, "watchdog") == watchdog
    assert isinstance(await first_report(link, installed), messages.AgentReady)


async def test_the_settings_on_the_node_are_private_and_complete(node: Sshd, link: NodeLink) -> None:
    """Deadline, grace and self-stop reach watchdog and agent; folders are 0700 and files 0600."""
    until = deadline_ms()
    stop = SelfStop(argv=("/bin/echo", "it's; $HOME"), env={"A": "b c"})
    await prepare(link, plan(deadline_ms=until, self_stop=stop), ignore)
    told = {name: json.loads((folder(node) / name).read_text()) for name in ("watchdog.json", "agent.json")}

    for settings in told.values():
        assert settings["deadline_ms"] == until
        assert settings["grace_s"] == 300
        assert settings["self_stop"] == {"argv": ["/bin/echo", "it's; $HOME"], "env": {"A": "b c"}}
    assert folder(node).stat().st_mode & 0o777 == 0o700
    modes = {f.name: oct(f.stat().st_mode & 0o777) for f in folder(node).iterdir() if f.is_file()}
    assert set(modes.values()) == {"0o600"}, modes


async def test_a_new_deadline_reaches_a_running_watchdog(node: Sshd, link: NodeLink) -> None:
    """Preparing again with another deadline renews it without a second watchdog."""
    await prepare(link, plan(), ignore)
    later = deadline_ms(1200)
    await prepare(link, plan(deadline_ms=later), ignore)

    assert json.loads((folder(node) / "watchdog.json").read_text())["deadline_ms"] == later


async def test_the_agent_outlives_the_link(node: Sshd, link: NodeLink) -> None:
    """Cutting the connection ends neither agent nor watchdog."""
    installed = await prepare(link, plan(), ignore)
    pids = [pid_of(node, "watchdog"), pid_of(node, "agent")]
    link.abort()
    again = node.link()
    await again.connect()

    assert isinstance(await first_report(again, installed), messages.AgentReady)
    assert [pid_of(node, "watchdog"), pid_of(node, "agent")] == pids
    await again.aclose()


@pytest.mark.slow
async def test_missing_packages_come_over_the_link_when_the_node_has_no_internet(tmp_path: Path) -> None:
    """A bare Python on a node without an index gets the user's versions in an environment of the lease, and works."""
    bare = bare_python(tmp_path)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "UV_INDEX_URL": "http://127.0.0.1:9/", "UV_OFFLINE": "1"}
    node = Sshd(tmp_path / "node", environment={"GPUMARKET_PYTHON": bare, **nowhere}).start()
    link = node.link()
    try:
        await link.connect()
        steps: list[SetupStep] = []
        installed = await prepare(link, plan(), steps.append)
        if not installed.python.startswith(str(folder(node))):
            pytest.skip(f"{installed.python} of this machine has all packages, so nothing had to be brought")
        ready = await first_report(link, installed)
        details = [s.detail for s in steps if s.name == "packages"]

        assert installed.python == str(folder(node) / "venv/bin/python")
        assert installed.versions["psutil"] == ours().packages["psutil"]
        assert any("go over the link" in detail for detail in details), details
        assert isinstance(ready, messages.AgentReady)
    finally:
        await link.aclose()
        end_everything(node)
        node.stop()


async def test_another_python_is_a_mismatch_that_names_difference_and_fix(node: Sshd, link: NodeLink) -> None:
    """When no Python of the user's minor version is there and none can be brought, the message says what to do."""
    wanted = Versions(python="3.2.5", packages=ours().packages)
    steps: list[SetupStep] = []
    with pytest.raises(VersionMismatch, match=r"Python .* on the node, 3\.2\.5 here") as caught:
        await prepare(link, plan(wanted=wanted), steps.append)

    assert "Use an image with Python 3.2" in str(caught.value)
    assert steps[-1].state == "failed"


async def test_a_home_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Where the lease's folder cannot be made, the error names it."""
    node = Sshd(tmp_path / "node", environment={"HOME": "/proc/nowhere", "GPUMARKET_PYTHON": sys.executable}).start()
    link = node.link()
    await link.connect()
    with pytest.raises(CommandFailed, match=r"folder /proc/nowhere/\.gpumarket"):
        await prepare(link, plan(), ignore)
    await link.aclose()
    node.stop()


@pytest.mark.parametrize(
    "answer",
    [
        "nothing",
        "GPUMARKET-ANSWER {",
        "GPUMARKET-ANSWER []",
        'GPUMARKET-ANSWER {"folder": 7}',
        'GPUMARKET-ANSWER {"folder": "relative", "python": "/usr/bin/python3"}',
        'GPUMARKET-ANSWER {"folder": "/tmp/x\\u0000; reboot", "python": "/usr/bin/python3"}',
        'GPUMARKET-ANSWER {"folder": "/tmp/$(reboot)", "python": "/usr/bin/python3"}',
        'GPUMARKET-ANSWER {"folder": "/tmp/`reboot`", "python": "/usr/bin/python3"}',
        "GPUMARKET-ANSWER " + "[" * 100_000,
    ],
)
async def test_an_answer_that_is_none_ends_set_up(tmp_path: Path, answer: str) -> None:
    """Whatever a hostile `python3` on the node prints, set-up ends with a NodeError and runs nothing of it."""
    liar = tmp_path / "python"
    (tmp_path / "answer").write_text(answer)
    liar.write_text(f'#!/bin/sh\n[ "$2" = -c ] && exit 0\ncat >/dev/null; cat {tmp_path}/answer\n')
    liar.chmod(0o755)
    node = Sshd(tmp_path / "node", environment={"GPUMARKET_PYTHON": str(liar)}).start()
    link = node.link()
    await link.connect()
    with pytest.raises(NodeError):
        await prepare(link, plan(), ignore)
    await link.aclose()
    node.stop()


@pytest.mark.parametrize("lease_id", ["", "..", "a/b", "a b", "-x", "a\n", "$(x)", "x" * 100])
def test_a_lease_id_that_is_no_folder_name_is_refused(lease_id: str) -> None:
    """Nothing but letters, digits, dash and underscore gets into a path on the node."""
    with pytest.raises(NodeError):
        plan(lease_id=lease_id)


def ignore(step: SetupStep) -> None:
    """Progress that nobody watches."""


async def first_report(link: NodeLink, installed: Installed) -> object:
    """Say hello to the agent through the link, and take its first report."""
    peer = Peer(boot_id="user-side", receives=messages.Report, sends=messages.Order)
    reader, writer = await link.open_stream(installed.attach_command)
    attached = asyncio.create_task(peer.attach(reader, writer))
    try:
        return await asyncio.wait_for(peer.receive(), 30)
    finally:
        peer.detach()
        writer.close()
        await asyncio.gather(attached, return_exceptions=True)


def bare_python(scratch: Path) -> str:
    """An interpreter of this minor version that has no packages."""
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(scratch / "bare")], check=True, capture_output=True
    )
    return str(scratch / "bare" / "bin" / "python")
