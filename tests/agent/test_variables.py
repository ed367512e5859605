"""Inputs arrive and outputs leave by content, checked, and every failure names its variable."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import cloudpickle
import numpy as np
import pytest
import pytest_asyncio

from jupyter_gpumarket import codecs
from jupyter_gpumarket.wire.messages import BlobStored, GetOutput, Input, OutputChunk, PutBlob
from tests.agent.user_side import UserSide, user_side

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def user(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[UserSide]:
    """One agent for all tests here: none of them harms it."""
    async with user_side(tmp_path_factory.mktemp("variables") / "node") as side:
        yield side


async def put(user: UserSide, data: bytes, *, sha256: str = "", piece: int = 1 << 20) -> BlobStored:
    sha256 = sha256 or hashlib.sha256(data).hexdigest()
    for offset in range(0, max(len(data), 1), piece):
        part = data[offset : offset + piece]
        await user.peer.send(PutBlob(sha256=sha256, offset=offset, data=part, last=offset + piece >= len(data)))
    return await user.until(lambda r: isinstance(r, BlobStored) and r.sha256 == sha256)


async def bring(user: UserSide, name: str, value: Any) -> Input:
    encoded = codecs.encode_input(value)
    stored = await put(user, encoded.data)
    assert stored.error == ""
    return Input(name=name, codec=encoded.codec, sha256=stored.sha256)


async def fetch(user: UserSide, run_id: str, name: str, offset: int = 0) -> bytes:
    await user.peer.send(GetOutput(run_id=run_id, name=name, offset=offset))
    await user.until(lambda r: isinstance(r, OutputChunk) and r.run_id == run_id and r.last and r.offset >= offset)
    chunks = [r for r in user.reports if isinstance(r, OutputChunk) and r.run_id == run_id and r.name == name]
    user.reports = [r for r in user.reports if r not in chunks]
    return b"".join(chunk.data for chunk in chunks)


async def test_values_go_there_and_back(user: UserSide) -> None:
    """Plain values, arrays and the user's own functions go in; results come out with size and hash."""
    array = np.arange(1_000_000, dtype=np.float64)
    inputs = (await bring(user, "a", array), await bring(user, "f", lambda x: x * 2), await bring(user, "n", 3))
    run_id = await user.start_run("b = f(a) + n", inputs=inputs, outputs=("b",))
    state = await user.ended(run_id)
    (output,) = state.outputs
    data = await fetch(user, run_id, "b")

    assert (state.status, output.error, output.size) == ("ok", "", len(data))
    assert hashlib.sha256(data).hexdigest() == output.sha256
    assert np.array_equal(codecs.decode(output.codec, data), array * 2 + 3)


async def test_an_output_goes_on_from_an_offset(user: UserSide) -> None:
    """A fetch that was cut is taken up where it was."""
    run_id = await user.start_run("b = list(range(500_000))", outputs=("b",))
    await user.ended(run_id)
    whole = await fetch(user, run_id, "b")

    assert await fetch(user, run_id, "b", offset=len(whole) - 1000) == whole[-1000:]


async def test_what_cannot_be_brought_back_is_named(user: UserSide) -> None:
    """An unknown variable and a type without codec are clear errors; the others still come."""
    state = await user.run("good = 1\nbad = object()", outputs=("good", "missing", "bad"))
    good, missing, bad = state.outputs

    assert state.status == "ok"
    assert (good.error, good.codec) == ("", "json")
    assert "'missing'" in missing.error
    assert "'bad'" in bad.error
    assert "builtins.object" in bad.error


async def test_a_failing_input_is_told_before_the_cell_runs(user: UserSide) -> None:
    """A value that cannot be decoded on the node ends the run with its name, and no line of the cell has run."""
    run_id = await user.start_run("print('ran')", inputs=(await broken_input(user),))
    state = await user.ended(run_id)

    assert (state.status, state.error_name) == ("error", "InputError")
    assert "'thing'" in state.error_value
    assert "not on this machine" in state.error_value
    assert user.text(run_id) == ""
    assert user.outputs(run_id)[-1].msg_type == "error"


class NotThere:
    def __reduce__(self) -> Any:
        return (exec, ("raise ModuleNotFoundError('not on this machine')",))


async def broken_input(user: UserSide) -> Input:
    stored = await put(user, cloudpickle.dumps(NotThere()))
    return Input(name="thing", codec="cloudpickle", sha256=stored.sha256)


async def test_an_input_that_was_not_sent_is_refused(user: UserSide) -> None:
    """A run whose input is not on the node does not begin."""
    state = await user.run("pass", inputs=(Input(name="x", codec="json", sha256="0" * 64),))

    assert state.status == "error"
    assert "'x'" in state.reason


async def test_a_damaged_blob_is_refused(user: UserSide) -> None:
    """Bytes with another hash than announced are not kept."""
    stored = await put(user, b"damaged", sha256=hashlib.sha256(b"whole").hexdigest())

    assert "another hash" in stored.error
    assert not list((user.folder / "blobs").glob(stored.sha256 + "*"))


async def test_a_missing_piece_is_noticed(user: UserSide) -> None:
    """A blob whose pieces do not follow each other has to be sent anew."""
    sha256 = hashlib.sha256(b"abcdef").hexdigest()
    await user.peer.send(PutBlob(sha256=sha256, offset=0, data=b"ab", last=False))
    await user.peer.send(PutBlob(sha256=sha256, offset=4, data=b"ef", last=True))
    stored = await user.until(lambda r: isinstance(r, BlobStored) and r.sha256 == sha256)
    user.reports.remove(stored)
    again = await put(user, b"abcdef", piece=2)

    assert "send it anew" in stored.error
    assert again.error == ""


async def test_names_cannot_leave_the_folder(user: UserSide) -> None:
    """Run ids, sessions and hashes that would be paths are refused."""
    evil = await user.run("pass", run_id="../../evil")
    odd = await user.run("pass", session="a/b")

    assert "run_id" in evil.reason
    assert "session" in odd.reason
