"""Cells run on real kernels through the agent, as in Jupyter."""

from __future__ import annotations

import json

from tests.agent.user_side import UserSide


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
