"""However a cell ends, its run ends once, with the truth, and the session is usable again."""

from __future__ import annotations

import asyncio

import pytest

from jupyter_gpumarket.wire.messages import CloseSession, Interrupt, RestartSession, RunStateReport, SessionReport
from tests.agent.user_side import UserSide, gone

FOREVER = "import time\nprint('begun')\nwhile True: time.sleep(0.05)"
STUBBORN = """
import time
print('begun')
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


async def begun(user: UserSide, run_id: str) -> None:
    await user.until(lambda r: getattr(r, "msg_type", "") == "stream" and r.run_id == run_id)


async def test_an_interrupt_ends_the_cell_and_keeps_the_session(user: UserSide) -> None:
    """Interrupting is Ctrl-C: KeyboardInterrupt in the cell, variables stay."""
    run_id = await user.start_run("x = 5\n" + FOREVER)
    await begun(user, run_id)
    await user.peer.send(Interrupt(run_id=run_id))
    state = await user.ended(run_id)

    assert (state.status, state.error_name) == ("interrupted", "KeyboardInterrupt")
    assert (await user.run("assert x == 5")).status == "ok"


async def test_an_early_interrupt_is_not_lost(user: UserSide) -> None:
    """A cell that is interrupted while its kernel still starts does not run."""
    run_id = await user.start_run(FOREVER)
    await user.peer.send(Interrupt(run_id=run_id))

    assert (await user.ended(run_id)).status == "interrupted"


async def test_a_queued_cell_is_dropped_by_an_interrupt(user: UserSide) -> None:
    """Interrupting a cell that waits takes it out of the queue, and the one that runs goes on."""
    first = await user.start_run("import time; time.sleep(1.5); print('done')")
    second = await user.start_run("print('never')")
    await user.peer.send(Interrupt(run_id=second))

    assert (await user.ended(second)).status == "interrupted"
    assert (await user.ended(first)).status == "ok"
    assert user.text(second) == ""


async def test_a_cell_that_ignores_an_interrupt_is_told(user: UserSide) -> None:
    """The run goes on with a reason that says so; restarting the session ends it, and what waits, as errors."""
    run_id = await user.start_run(STUBBORN)
    await begun(user, run_id)
    waiting = await user.start_run("pass")
    await user.peer.send(Interrupt(run_id=run_id))
    await user.until(lambda r: isinstance(r, RunStateReport) and "not obeyed" in r.reason)
    await user.peer.send(RestartSession(session="main"))

    for each in (run_id, waiting):
        state = await user.ended(each)
        assert (state.status, state.error_name) == ("error", "SessionRestarted")
    assert (await user.run("pass")).status == "ok"


async def test_a_session_closed_and_used_again_is_new(user: UserSide) -> None:
    """CloseSession ends the kernel and what runs in it; the same name at once is a new session."""
    run_id = await user.start_run("x = 1\n" + FOREVER)
    await begun(user, run_id)
    await user.peer.send(CloseSession(session="main"))
    again = await user.run("x")

    assert (await user.ended(run_id)).error_name == "SessionClosed"
    assert again.error_name == "NameError"


async def test_a_time_out_interrupts(user: UserSide) -> None:
    """A cell over its time is interrupted and told as timed out; the session keeps its variables."""
    run_id = await user.start_run("x = 1\n" + FOREVER, timeout_s=1.0)
    state = await user.ended(run_id)

    assert state.status == "timed_out"
    assert (await user.run("x")).status == "ok"


async def test_a_time_out_kills_what_does_not_obey(user: UserSide) -> None:
    """A cell that ignores its time-out loses its kernel; the next cell has a new one."""
    state = await user.run(STUBBORN, timeout_s=0.5)

    assert state.status == "timed_out"
    assert "killed" in state.reason
    assert (await user.run("pass")).status == "ok"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import os; os._exit(7)", "exit code 7"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
    ],
)
async def test_a_kernel_s_death_is_told_and_the_session_lives(user: UserSide, code: str, words: str) -> None:
    """When the kernel dies in a cell, its output so far is kept, the reason is told, and the next cell runs."""
    run_id = await user.start_run("print('so far', flush=True)\nimport time; time.sleep(0.3)\n" + code)
    state = await user.ended(run_id)

    assert (state.status, state.error_name) == ("error", "KernelDied")
    assert words in state.reason
    assert user.text(run_id) == "so far\n"
    dead = await user.until(lambda r: isinstance(r, SessionReport) and r.state == "dead")
    assert words in dead.reason
    assert (await user.run("pass")).status == "ok"


async def test_a_forking_cell_ends_once(user: UserSide) -> None:
    """A cell that forks ends once; what the child prints belongs to it."""
    code = """
import os
if os.fork() == 0:
    print('child', flush=True)
    os._exit(0)
os.wait()
print('parent')
"""
    run_id = await user.start_run(code)
    state = await user.ended(run_id)

    assert state.status == "ok"
    assert sorted(user.text(run_id).split()) == ["child", "parent"]


async def test_kernels_die_with_a_killed_agent(user: UserSide) -> None:
    """kill -9 of the agent leaves no kernel behind, and a new agent tells its runs as lost."""
    run_id = await user.start_run("import os; print(os.getpid(), flush=True)\n" + FOREVER)
    await begun(user, run_id)
    kernel = int(user.text(run_id).split()[0])
    user.agent.kill()
    await user.agent.wait()

    assert await gone(kernel)
    await user.cut()
    await user.start_agent()
    await user.attach()
    await user.until(lambda r: getattr(r, "pid", 0) == user.agent.pid)
    user.reports.clear()
    again = await user.start_run(FOREVER, run_id=run_id)
    state = await user.until(lambda r: isinstance(r, RunStateReport) and r.run_id == again)

    assert state.status == "lost"
    assert user.restarts == 1


async def test_sigterm_ends_everything(user: UserSide) -> None:
    """An agent that is asked to end takes its kernels and their children with it."""
    code = """
import os, subprocess
child = subprocess.Popen(['sleep', '100'], start_new_session=True)
print(os.getpid(), child.pid, flush=True)
"""
    run_id = await user.start_run(code + FOREVER)
    await begun(user, run_id)
    user.agent.terminate()
    await asyncio.wait_for(user.agent.wait(), 15)

    for pid in user.text(run_id).split()[:2]:
        assert await gone(int(pid))
    assert not (user.folder / "agent.sock").exists()
