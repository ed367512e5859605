"""The agent as a good inhabitant of a node: its files, its reports, its end, and life from a zip."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import jupyter_gpumarket
from jupyter_gpumarket.agent import NODE_MODULES
from jupyter_gpumarket.agent.runs import run_list
from jupyter_gpumarket.agent.use import UseMeter
from jupyter_gpumarket.wire.messages import (
    AgentReady,
    DaskReport,
    RunOutput,
    RunStateReport,
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


def no_figures(device: int) -> None:
    raise RuntimeError("not supported")


# NVIDIA's library on a node with one GPU that does not tell its use.
ONE_GPU = SimpleNamespace(
    NVMLError=RuntimeError,
    nvmlDeviceGetCount=lambda: 1,
    nvmlDeviceGetHandleByIndex=lambda index: index,
    nvmlDeviceGetName=lambda device: b"NVIDIA H100",
    nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=2**30, total=80 * 2**30),
    nvmlDeviceGetUtilizationRates=no_figures,
)


def test_gpus_are_told_as_far_as_they_tell(tmp_path: Path) -> None:
    """A GPU that hides one figure is still reported with the others."""
    (gpu,) = UseMeter(tmp_path, ONE_GPU).measure(0).gpus

    assert (gpu.name, gpu.memory_used_gib, gpu.memory_total_gib, gpu.use_percent) == ("NVIDIA H100", 1.0, 80.0, 0.0)


def test_a_list_of_very_many_runs_still_fits_a_frame() -> None:
    """Long tracebacks are left out of the list, and then the oldest runs, rather than the list not being sent."""
    long = RunStateReport(run_id="r", session="s", status="error", messages=1, traceback=("x" * 50_000,))

    fits = run_list([long] * 1000)

    assert len(fits.runs) == 1000
    assert fits.runs[0].traceback == ()
    assert run_list([long]).runs[0].traceback == long.traceback


async def test_garbage_on_the_socket_harms_nobody(user: UserSide) -> None:
    """Strangers on the agent's socket are dropped, and the user's side is not disturbed."""
    await user.run("x = 1")
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100, os.urandom(5000), b""):
        reader, writer = await asyncio.open_unix_connection(str(user.folder / "agent.sock"))
        writer.write(garbage)
        writer.write_eof()
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()

    assert (await user.run("x")).status == "ok"
    assert user.restarts == 0


async def test_a_suspended_user_side_finds_all_again(tmp_path: Path) -> None:
    """When the user's side is suspended beyond the silence, the agent lets the stream go and keeps the output."""
    async with user_side(tmp_path / "node", silence_s=0.8, ping_s=0.2) as user:
        run_id = await user.start_run("import time\nfor i in range(40): print(i, flush=True); time.sleep(0.05)")
        await user.until(lambda r: isinstance(r, RunOutput))
        user.bridge.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)
        user.bridge.send_signal(signal.SIGCONT)
        await asyncio.wait_for(asyncio.shield(user._tasks[-1]), 10)
        await user.attach()
        await user.ended(run_id)

    assert user.text(run_id).split() == [str(i) for i in range(40)]


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
import signal
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
