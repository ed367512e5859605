"""The agent as a good inhabitant of a node: its files, its reports, its end, and life from a zip."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import jupyter_gpumarket
from jupyter_gpumarket.agent import NODE_MODULES
from jupyter_gpumarket.wire.messages import (
    AgentReady,
    DaskReport,
    SetDeadline,
    Shutdown,
    StartDask,
    StopDask,
    UseReport,
)
from tests.agent.user_side import UserSide, gone, user_side


def test_check_prints_versions() -> None:
    """`check` prints Python's and the packages' versions as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket.agent", "check"], capture_output=True, check=True, timeout=30
    )
    report = json.loads(done.stdout)

    assert report["python"].startswith("3.")
    assert {"distributed", "ipykernel", "numpy"} <= set(report["versions"])


async def test_an_attachment_begins_with_who_the_agent_is(user: UserSide) -> None:
    """AgentReady comes at each attachment, with the same process behind it."""
    first = await user.until(lambda r: isinstance(r, AgentReady))
    await user.cut()
    user.reports.clear()
    await user.attach()
    second = await user.until(lambda r: isinstance(r, AgentReady))

    assert first.pid == second.pid == user.agent.pid


async def test_it_feeds_the_watchdog(user: UserSide) -> None:
    """The deadline goes into the watchdog's file beside what set-up wrote there; heartbeat and busy follow events."""
    settings = user.folder / "watchdog.json"
    settings.write_text(json.dumps({"deadline_ms": 1, "self_stop": {"argv": ["halt"]}}))
    run_id = await user.start_run("import time; time.sleep(1)")
    await user.peer.send(SetDeadline(deadline_ms=123, grace_s=45))
    await user.until(lambda r: getattr(r, "status", "") == "running")
    assert (user.folder / "busy").exists()
    await user.ended(run_id)
    await user.until(lambda r: isinstance(r, UseReport))
    assert (user.folder / "heartbeat").exists()

    told = json.loads(settings.read_text())
    assert (told["deadline_ms"], told["grace_s"], told["self_stop"]) == (123, 45, {"argv": ["halt"]})
    assert not (user.folder / "busy").exists()


async def test_it_reports_what_the_node_does(user: UserSide) -> None:
    """Processor, memory and disk are told every few seconds."""
    use = await user.until(lambda r: isinstance(r, UseReport))

    assert 0 < use.memory_used_gib < use.memory_total_gib
    assert use.disk_free_gib > 0


async def test_its_files_are_private(user: UserSide) -> None:
    """Nobody else on the node can read the folder's files or use the socket or the kernels' keys."""
    await user.run("pass")

    modes = {path: path.stat().st_mode & 0o077 for path in user.folder.rglob("*") if path.name != "agent.json"}
    assert {str(path): mode for path, mode in modes.items() if mode and path.name != "agent.log"} == {}


async def test_a_second_agent_is_refused(user: UserSide) -> None:
    """There is one agent in a folder."""
    await user.until(lambda r: isinstance(r, AgentReady))
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "jupyter_gpumarket.agent", "serve", "--folder", str(user.folder)],
        capture_output=True,
        timeout=30,
    )

    assert done.returncode == 2
    assert b"already" in done.stderr


async def test_shutdown_ends_all_and_leaves_only_the_watchdog_s_files(user: UserSide) -> None:
    """After Shutdown no process is left, and of the folder only what the watchdog needs."""
    run_id = await user.start_run("import os; print(os.getpid())")
    await user.ended(run_id)
    (user.folder / "watchdog.json").write_text("{}")
    await user.peer.send(Shutdown())

    assert await asyncio.wait_for(user.agent.wait(), 15) == 0
    assert await gone(int(user.text(run_id)))
    assert {path.name for path in user.folder.iterdir()} == {"watchdog.json"}


async def test_attach_says_when_there_is_no_agent(tmp_path: Path) -> None:
    """Without an agent `attach` ends with words and an exit code."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "jupyter_gpumarket.agent", "attach", "--folder", str(tmp_path), "--patience", "0.2"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=30,
    )

    assert done.returncode == 3
    assert b"no agent answers" in done.stderr


async def test_it_runs_from_a_zip_and_in_a_deep_folder(tmp_path: Path) -> None:
    """The node's part of the package works from a zip on PYTHONPATH, and in a folder too deep for unix sockets."""
    package = Path(jupyter_gpumarket.__file__).parent
    archive = tmp_path / "app.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in NODE_MODULES:
            sources = [package / f"{name}.py"] if (package / f"{name}.py").exists() else (package / name).rglob("*.py")
            for source in sources:
                content = "" if name == "__init__" else source.read_text()
                file.writestr(str(Path("jupyter_gpumarket") / source.relative_to(package)), content)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(archive)
    try:
        async with user_side(tmp_path / ("deep" * 30) / "node") as user:
            code = "import jupyter_gpumarket.wire as w; y = 2; print(w.__file__)"
            run_id = await user.start_run(code, outputs=("y",))
            state = await user.ended(run_id)
    finally:
        os.environ["PYTHONPATH"] = before or ""

    assert state.status == "ok"
    assert state.outputs[0].codec == "json"
    assert str(archive) in user.text(run_id)


@pytest.mark.slow
async def test_dask_runs_and_ends_with_the_agent(user: UserSide) -> None:
    """A scheduler and a worker start with their addresses told, work, and end when asked or with the agent."""
    await user.peer.send(
        StartDask(role="scheduler", name="head", options={"host": "127.0.0.1", "port": "0", "no-dashboard": ""})
    )
    head = await user.until(lambda r: isinstance(r, DaskReport) and r.name == "head" and r.state != "starting")
    assert head.state == "running", head.reason
    options = {"": head.address, "nworkers": "1", "nthreads": "1", "no-dashboard": "", "host": "127.0.0.1"}
    await user.peer.send(StartDask(role="worker", name="w1", options=options))
    await user.until(lambda r: isinstance(r, DaskReport) and r.name == "w1" and r.state == "running")
    code = f"""
import os
from distributed import Client
with Client({head.address!r}, timeout=20) as client:
    client.wait_for_workers(1, timeout=30)
    print(client.submit(sum, [1, 2, 3]).result(), client.submit(os.getpid).result())
"""
    run_id = await user.start_run(code)
    state = await user.ended(run_id, patience_s=60)
    assert state.status == "ok", state.traceback
    total, worker = user.text(run_id).split()
    assert total == "6"

    await user.peer.send(StopDask(name="w1"))
    ended = await user.until(lambda r: isinstance(r, DaskReport) and r.name == "w1" and r.state == "ended")
    assert ended.address
    assert await gone(int(worker))
    user.agent.kill()
    await user.agent.wait()
    assert await no_process_of(user.folder)


async def no_process_of(folder: Path) -> bool:
    from jupyter_gpumarket.agent.processes import of_folder

    try:
        async with asyncio.timeout(15):
            while of_folder(folder):
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


async def test_a_bad_dask_order_is_told(user: UserSide) -> None:
    """A wrong role, or a worker that fails at once, is reported with its reason."""
    await user.peer.send(StartDask(role="worker", name="bad", options={"no-such-option": ""}))
    ended = await user.until(lambda r: isinstance(r, DaskReport) and r.name == "bad" and r.state == "ended")

    assert "no-such-option" in ended.reason
