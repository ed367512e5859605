"""The watchdog stops a node at its deadline and in silence, and never because something cannot be read."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jupyter_gpumarket.agent import watchdog
from tests.agent.user_side import gone, is_alive

WALL = 1_800_000_000_000


class Node:
    """Virtual time for the timer: wall and boot clock, and what the files say."""

    def __init__(self, **settings: object) -> None:
        self.timer = watchdog.Timer(0.0)
        self.wall_ms, self.boot_s = WALL, 0.0
        self.settings: dict[str, object] | None = settings or None
        self.heartbeat: float | None = 1.0
        self.busy = False

    def tick(self) -> str:
        return self.timer.tick(
            watchdog.Reading(
                wall_ms=self.wall_ms,
                boot_s=self.boot_s,
                settings=self.settings,
                heartbeat=self.heartbeat,
                busy=self.busy,
            )
        )

    def stops_after(self, limit_s: float, *, speaking: bool = False) -> float | None:
        """Seconds until it stops, of ticks every 5 s."""
        began = self.boot_s
        while self.boot_s - began <= limit_s:
            if self.tick():
                return self.boot_s - began
            self.boot_s += 5
            self.wall_ms += 5000
            if speaking:
                self.heartbeat = self.boot_s
        return None


def test_the_deadline_stops_even_a_busy_node_that_is_spoken_to() -> None:
    """Nothing outlives the agreed hours."""
    node = Node(deadline_ms=WALL + 600_000, grace_s=60)
    node.busy = True

    assert node.stops_after(10_000, speaking=True) == pytest.approx(600, abs=10)


def test_silence_stops_an_idle_node() -> None:
    """An idle node stops after its grace."""
    assert Node(deadline_ms=WALL + 10**9, grace_s=60).stops_after(10_000) == pytest.approx(60, abs=10)


def test_silence_lets_a_busy_node_go_on() -> None:
    """A cell that runs goes on to the deadline; when it is done, the grace begins anew."""
    node = Node(deadline_ms=WALL + 10**9, grace_s=60)
    node.busy = True
    assert node.stops_after(50_000) is None
    node.busy = False

    assert node.stops_after(10_000) == pytest.approx(60, abs=10)


def test_a_word_from_the_user_renews_the_grace() -> None:
    """A node that is spoken to lives."""
    assert Node(deadline_ms=WALL + 10**9, grace_s=60).stops_after(5000, speaking=True) is None


def test_a_clock_set_back_does_not_give_more_time() -> None:
    """The time that was left when the deadline was set counts on a clock that nobody sets."""
    node = Node(deadline_ms=WALL + 600_000, grace_s=10**6)
    node.tick()
    node.wall_ms -= 86_400_000

    assert node.stops_after(10_000) == pytest.approx(600, abs=10)


def test_a_short_jump_of_the_clock_stops_nothing() -> None:
    """A wall clock that leaps past the deadline for a moment does not cost the user's work."""
    node = Node(deadline_ms=WALL + 600_000, grace_s=10**6)
    node.tick()
    node.wall_ms += 86_400_000
    assert node.tick() == ""
    node.wall_ms -= 86_400_000

    assert node.stops_after(500) is None


def test_an_extended_deadline_counts() -> None:
    """A later deadline takes the place of an earlier one."""
    node = Node(deadline_ms=WALL + 100_000, grace_s=10**6)
    node.tick()
    node.settings = {"deadline_ms": WALL + 1_000_000, "grace_s": 10**6}

    assert node.stops_after(10_000) == pytest.approx(1000, abs=10)


@pytest.mark.parametrize("broken", [None, {}, {"deadline_ms": "soon", "grace_s": -1}, {"deadline_ms": float("nan")}])
def test_broken_settings_keep_the_last_good_ones(broken: dict[str, object] | None) -> None:
    """A file that becomes unreadable or nonsense changes nothing."""
    node = Node(deadline_ms=WALL + 600_000, grace_s=10**6)
    node.tick()
    node.settings = broken

    assert node.stops_after(10_000) == pytest.approx(600, abs=10)


def test_without_any_settings_the_node_does_not_live_long() -> None:
    """With nothing to read at all, silence and an hour are the limits."""
    assert Node().stops_after(10_000) == pytest.approx(watchdog.DEFAULT_GRACE_S, abs=10)
    assert Node().stops_after(10_000, speaking=True) == pytest.approx(watchdog.DEFAULT_LIFE_S, abs=10)


def test_it_is_one_old_fashioned_file() -> None:
    """It parses as Python 3.8 and imports nothing but the standard library of that version."""
    tree = ast.parse(Path(watchdog.__file__).read_text(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}

    assert imported == {"contextlib", "json", "os", "signal", "subprocess", "sys", "time"}
    assert not any(isinstance(node, ast.Match) for node in ast.walk(tree))


def start(folder: Path, **settings: object) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "watchdog.json").write_text(json.dumps({"tick_s": 0.05, **settings}))
    environment = {name: value for name, value in os.environ.items() if name != "GPUMARKET_LEASE"}
    return subprocess.Popen(
        [sys.executable, watchdog.__file__, str(folder)], stdout=subprocess.DEVNULL, env=environment
    )


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_it_ends_the_lease_s_processes_and_runs_the_recipe_until_it_works(tmp_path: Path) -> None:
    """Agent, its descendants and detached processes of the lease die; the self-stop is tried again after a failure."""
    folder = tmp_path / "node"
    folder.mkdir()
    marker = tmp_path / "tries"
    recipe = f"open({str(marker)!r}, 'a').write('x'); raise SystemExit(len(open({str(marker)!r}).read()) < 2)"
    sleeper = "import time; time.sleep(60)"
    fork = f"import os, time; os.fork() or os.setsid(); time.sleep(60) # {folder}"
    agent = subprocess.Popen([sys.executable, "-c", fork], start_new_session=True)
    (folder / "agent.pid").write_text(str(agent.pid))
    stray = subprocess.Popen(
        [sys.executable, "-c", sleeper], env={**os.environ, "GPUMARKET_FOLDER": str(folder)}, start_new_session=True
    )
    other = subprocess.Popen([sys.executable, "-c", sleeper], start_new_session=True)
    try:
        dog = start(
            folder,
            deadline_ms=now_ms() + 1000,
            grace_s=100,
            self_stop={"argv": [sys.executable, "-c", recipe], "env": {}},
        )
        assert await asyncio.to_thread(dog.wait, 30) == 0
        assert await asyncio.to_thread(agent.wait, 5) != 0
        assert await asyncio.to_thread(stray.wait, 5) != 0
        assert is_alive(other.pid)
        assert marker.read_text() == "xx"
        assert "agreed time is over" in (folder / "stopped").read_text()
    finally:
        for process in (agent, stray, other):
            process.kill()
            process.wait()


async def test_a_busy_mark_of_a_dead_agent_does_not_count(tmp_path: Path) -> None:
    """When the agent was killed during a cell, silence ends the node."""
    folder = tmp_path / "node"
    folder.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (folder / "agent.pid").write_text(str(dead.pid))
    (folder / "busy").touch()
    dog = start(folder, deadline_ms=now_ms() + 10**8, grace_s=0.5)

    assert await asyncio.to_thread(dog.wait, 20) == 0
    assert "no word" in (folder / "stopped").read_text()


async def test_it_ends_when_nothing_is_left_to_guard(tmp_path: Path) -> None:
    """A folder that was removed, without a recipe and without processes, needs no watchdog."""
    folder = tmp_path / "node"
    dog = start(folder, deadline_ms=now_ms() + 10**8, grace_s=10**6)
    while not (folder / "watchdog.pid").exists():
        await asyncio.sleep(0.02)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()

    assert await gone_by(dog)


async def gone_by(process: subprocess.Popen[bytes]) -> bool:
    ended = await gone(process.pid)
    process.kill()
    process.wait()
    return ended
