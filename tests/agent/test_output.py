"""Much output, fast output and cut links: nothing is lost, and memory stays bounded."""

from __future__ import annotations

import asyncio
import json
import resource
from pathlib import Path

import psutil
import pytest

from jupyter_gpumarket.wire.messages import ListRuns, RunList, RunOutput, Saved, Tail
from tests.agent.user_side import UserSide, user_side


@pytest.mark.slow
async def test_100_mb_printed_arrive_whole_in_bounded_memory(user: UserSide) -> None:
    """100 MB go through while agent and kernel stay small, though the user's side takes them late."""
    count = 1_000_000
    code = f"import os\nprint(os.getpid())\nfor i in range({count}): print(str(i).rjust(99))"
    peak: dict[int, int] = {}
    run_id = await user.start_run(code)

    async def watch() -> None:
        while True:
            for process in [agent, *agent.children()]:
                peak[process.pid] = max(peak.get(process.pid, 0), process.memory_info().rss)
            await asyncio.sleep(0.05)

    agent = psutil.Process(user.agent.pid)
    watching = asyncio.create_task(watch())
    state = await user.ended(run_id, patience_s=100)
    watching.cancel()
    text = user.text(run_id)
    lines = text.splitlines()

    assert state.status == "ok"
    assert len(lines) == count + 1
    assert [int(line) for line in lines[1:]] == list(range(count))
    assert [output.n for output in user.outputs(run_id)] == list(range(1, state.messages + 1))
    assert state.messages < 3000
    assert max(peak.values()) < 250_000_000


@pytest.mark.slow
async def test_a_flood_of_flushed_lines_loses_none(user: UserSide) -> None:
    """20,000 lines, each flushed alone, all arrive, in few messages."""
    run_id = await user.start_run("for i in range(20_000): print(i, flush=True)")
    state = await user.ended(run_id, patience_s=100)

    assert user.text(run_id).split() == [str(i) for i in range(20_000)]
    assert state.messages < 20_000


async def test_a_cut_link_loses_and_doubles_nothing(user: UserSide) -> None:
    """A cell prints through cuts; the same user's side gets each message once."""
    run_id = await user.start_run("import time\nfor i in range(60): print(i, flush=True); time.sleep(0.05)")
    for _ in range(3):
        await asyncio.sleep(0.6)
        await user.cut()
        await asyncio.sleep(0.2)
        await user.attach()
    state = await user.ended(run_id)

    assert user.text(run_id).split() == [str(i) for i in range(60)]
    assert [output.n for output in user.outputs(run_id)] == list(range(1, state.messages + 1))


async def test_a_new_user_side_goes_on_from_its_number(tmp_path: Path) -> None:
    """When the user's side was replaced, the new one lists the runs and tails from where the old one had saved."""
    async with user_side(tmp_path / "node") as old:
        run_id = await old.start_run("import time\nfor i in range(30): print(i, flush=True); time.sleep(0.05)")
        await old.until(lambda r: isinstance(r, RunOutput) and r.n >= 3)
        seen = old.outputs(run_id)
        await old.cut()

        new = UserSide(old.folder)
        new._tasks.append(asyncio.create_task(new.listen()))
        await new.attach()
        await new.peer.send(ListRuns())
        listed = await new.until(lambda r: isinstance(r, RunList))
        await new.peer.send(Tail(run_id=run_id, after=seen[-1].n))
        await new.ended(run_id)
        texts = [json.loads(output.content)["text"] for output in seen + new.outputs(run_id)]
        await new.close()

    assert [report.run_id for report in listed.runs] == [run_id]
    assert "".join(texts).split() == [str(i) for i in range(30)]


async def test_what_is_saved_leaves_the_node(user: UserSide) -> None:
    """Saved output is dropped from the node's disk, and an ended run with its whole folder."""
    run_id = await user.start_run("print('x' * 20_000_000)")
    state = await user.ended(run_id)
    folder = user.folder / "runs" / run_id
    before = sum(path.stat().st_size for path in folder.glob("*.log"))
    await user.peer.send(Saved(run_id=run_id, upto=state.messages))
    await user.run("pass")
    after = sum(path.stat().st_size for path in folder.glob("*.log"))
    await user.peer.send(Saved(run_id=run_id, upto=state.messages, ended=True))
    await user.run("pass")

    assert before > 20_000_000
    assert after < 5_000_000
    assert not folder.exists()


async def test_an_output_too_large_to_show_says_so(user: UserSide) -> None:
    """A display of 5 MB is replaced by a message that tells its size and kind."""
    run_id = await user.start_run("from IPython.display import HTML\nHTML('x' * 5_000_000)")
    await user.ended(run_id)
    (output,) = user.outputs(run_id)

    assert output.msg_type == "truncated"
    assert "execute_result" in json.loads(output.content)["text"]


async def test_a_full_disk_ends_the_cell_and_is_told(user: UserSide) -> None:
    """When the node's disk takes no more, the cell is interrupted and the run says why; the session lives."""
    await user.run("x = 1")
    resource.prlimit(user.agent.pid, resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
    state = await user.run("while True: print('x' * 1000)")
    resource.prlimit(user.agent.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    assert (state.status, state.error_name) == ("error", "NodeDiskError")
    assert (await user.run("x")).status == "ok"


async def test_strange_text_arrives(user: UserSide) -> None:
    """Lone surrogates, NULs and NaN in outputs become JSON that every reader takes."""
    run_id = await user.start_run(
        "from IPython.display import display\n"
        "print('a\\udc80b\\x00c')\n"
        "display({'application/json': {'x': float('nan')}}, raw=True)"
    )
    state = await user.ended(run_id)

    assert state.status == "ok"
    assert user.text(run_id) == "a\ufffdb\x00c\n"
    (shown,) = (json.loads(r.content)["data"] for r in user.outputs(run_id) if r.msg_type == "display_data")
    assert shown["application/json"]["x"] in {None, "nan"}
