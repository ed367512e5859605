"""Cells run on real kernels through the agent, as in Jupyter."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.agent.user_side import UserSide, user_side

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[UserSide]:
    """One agent for all tests here: none of them harms it."""
    async with user_side(tmp_path_factory.mktemp("sessions") / "node") as side:
        yield side


@pytest.fixture
def user(agent: UserSide, request: pytest.FixtureRequest) -> UserSide:
    """The shared agent, with a session of the test's own."""
    agent.session = request.node.name
    return agent


async def test_a_cell_prints_and_keeps_its_variables(user: UserSide) -> None:
    """Output comes numbered from 1 without gaps, and a later cell sees an earlier one's variables."""
    first = await user.start_run("x = 6 * 7\nprint('hello')\nx")
    state = await user.ended(first)
    second = await user.start_run("print(x)")
    await user.ended(second)

    assert state.status == "ok"
    assert [output.n for output in user.outputs(first)] == [1, 2]
    assert user.text(first) == "hello\n"
    result = user.outputs(first)[1]
    assert result.msg_type == "execute_result"
    assert json.loads(result.content)["data"]["text/plain"] == "42"
    assert user.text(second) == "42\n"


async def test_output_of_every_kind_passes(user: UserSide) -> None:
    """Display updates, clear_output, progress bars, stderr, shell commands and top-level await pass as in Jupyter."""
    code = """
import asyncio, sys
from IPython.display import display, clear_output, HTML
handle = display(HTML('<b>1</b>'), display_id='a')
handle.update(HTML('<b>2</b>'))
clear_output(wait=True)
print('bar 1', end='\\r')
print('oops', file=sys.stderr)
!echo from the shell
%time pass
await asyncio.sleep(0.01)
"""
    run_id = await user.start_run(code)
    state = await user.ended(run_id)

    kinds = [output.msg_type for output in user.outputs(run_id)]
    assert state.status == "ok"
    assert kinds[:3] == ["display_data", "update_display_data", "clear_output"]
    assert "bar 1\r" in user.text(run_id)
    assert "from the shell" in user.text(run_id)
    assert user.text(run_id, "stderr") == "oops\n"


async def test_a_figure_arrives_as_an_image(user: UserSide) -> None:
    """matplotlib draws inline without being told to."""
    run_id = await user.start_run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    state = await user.ended(run_id)

    assert state.status == "ok"
    assert any("image/png" in json.loads(output.content).get("data", {}) for output in user.outputs(run_id))


async def test_an_exception_is_told_with_its_traceback(user: UserSide) -> None:
    """An error is a message in the output and stands in the run's state; the next cell runs."""
    run_id = await user.start_run("1 / 0")
    state = await user.ended(run_id)

    assert (state.status, state.error_name) == ("error", "ZeroDivisionError")
    assert any("ZeroDivisionError" in line for line in state.traceback)
    assert [output.msg_type for output in user.outputs(run_id)] == ["error"]
    assert (await user.run("if :")).error_name == "SyntaxError"
    assert (await user.run("pass")).status == "ok"


async def test_sys_exit_behaves_as_in_jupyter(user: UserSide) -> None:
    """`sys.exit()` ends the cell with SystemExit, and the session lives with its variables."""
    await user.run("kept = 1")
    state = await user.run("import sys; sys.exit(3)")

    assert (state.status, state.error_name) == ("error", "SystemExit")
    assert (await user.run("assert kept == 1")).status == "ok"


async def test_exit_ends_the_kernel_and_the_next_cell_has_a_new_one(user: UserSide) -> None:
    """`exit()` ends the session's kernel; the cell is fine, and the next one starts afresh."""
    assert (await user.run("gone = 1\nexit()")).status == "ok"

    assert (await user.run("gone")).error_name == "NameError"


async def test_input_is_refused_clearly(user: UserSide) -> None:
    """A cell that asks for input fails at once with an error that says so."""
    state = await user.run("input('name? ')")

    assert (state.status, state.error_name) == ("error", "StdinNotImplementedError")


async def test_the_namespace_is_the_user_s(user: UserSide) -> None:
    """Nothing of ours stands in the namespace; history and execution counts are natural."""
    await user.run("1 + 1")
    run_id = await user.start_run("print(sorted(n for n in globals() if not n.startswith('_')), _, len(In))")
    await user.ended(run_id)

    assert user.text(run_id) == "['In', 'Out', 'exit', 'get_ipython', 'open', 'quit'] 2 3\n"


async def test_only_the_run_s_own_messages_count(user: UserSide) -> None:
    """What a thread of an earlier cell prints does not appear under a later one."""
    await user.run(
        "import contextvars, threading as t\nt.Timer(0.5, contextvars.copy_context().run, [print, 'late']).start()"
    )
    later = await user.start_run("import time; time.sleep(1); print('mine')")
    await user.ended(later)

    assert user.text(later) == "mine\n"


async def test_the_same_run_twice_runs_once(user: UserSide) -> None:
    """An order that is repeated, also after the run was forgotten, does not run again."""
    run_id = await user.start_run("n = globals().get('n', 0) + 1")
    await user.ended(run_id)
    await user.start_run("n = globals().get('n', 0) + 1", run_id=run_id)
    check = await user.start_run("print(n)")
    await user.ended(check)

    assert user.text(check) == "1\n"


async def test_runs_of_a_session_go_in_order_and_sessions_side_by_side(user: UserSide, tmp_path: Path) -> None:
    """Cells queue in their session; another session does not wait for them."""
    go_on = tmp_path / "go-on"
    slow = await user.start_run(f"import os, time\nwhile not os.path.exists({str(go_on)!r}):\n    time.sleep(0.02)")
    queued = await user.start_run("print('second')")
    other = await user.start_run("print('other')", session="other")

    await user.ended(other)
    assert not any(getattr(r, "run_id", "") == slow and getattr(r, "status", "") == "ok" for r in user.reports)
    go_on.touch()
    await user.ended(queued)
    assert user.text(queued) == "second\n"
