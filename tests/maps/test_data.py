"""Handles to data by content, and the way of large bytes to a node."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.agent import receive
from jupyter_gpumarket.agent.blobs import Blobs
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.agent.variables import read_input
from jupyter_gpumarket.cluster.blobs import LINKED_BYTES, BlobStore
from jupyter_gpumarket.cluster.bulk import Bulk
from jupyter_gpumarket.cluster.inputs import Inputs
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.errors import BadRequest, CodecError, Unreachable
from jupyter_gpumarket.nodes import Installed
from jupyter_gpumarket.notebook.data import TOGETHER_BYTES, Data, DataStore, is_large_array
from jupyter_gpumarket.wire import bulk
from jupyter_gpumarket.wire.bulk import TakeBlob, send_command
from jupyter_gpumarket.wire.messages import BlobStored
from jupyter_gpumarket.wire.peer import Reader, Writer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path: Path) -> DataStore:
    return DataStore(Folders(private_folder(tmp_path / "state"), private_folder(tmp_path / "config")))


def test_an_object_comes_back_as_it_was_and_is_kept_once(store: DataStore) -> None:
    """The same content is the same handle; changed bytes are refused."""
    array = np.arange(10_000)
    handle, again = store.put(array), store.put(np.arange(10_000))
    assert handle == again
    assert handle.path == again.path
    np.testing.assert_array_equal(store.get(handle), array)
    with pytest.raises(CodecError, match="nothing is unpickled here"):
        store.get(store.put({"any": {1, 2}, "f": len}))
    handle.path.write_bytes(b"something else")
    with pytest.raises(CodecError, match="put it again"):
        store.get(handle)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_kept_as_a_small_one_is_and_not_made_into_bytes_first(store: DataStore, order: Any) -> None:
    """The same content by the same name, in whatever order it lies; memory grows by much less than the array."""
    array = np.asarray(np.arange(TOGETHER_BYTES // 4).reshape(2, -1), order=order)
    encoded = codecs.encode_input(array)
    tracemalloc.start()
    handle = store.put(array)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert is_large_array(array)
    assert handle == store.keep(encoded.codec, encoded.data)
    assert most < array.nbytes / 2
    np.testing.assert_array_equal(store.get(handle), array)


def test_a_write_that_fails_leaves_nothing_behind(store: DataStore, tmp_path: Path) -> None:
    """A part of a large object does not stay on the disk, which may be full because of it."""
    with pytest.raises(TypeError):
        store.keep("npy", "x" * TOGETHER_BYTES)  # type: ignore[arg-type]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_is_a_path_on_both_sides(store: DataStore, tmp_path: Path) -> None:
    """Nothing is copied here; on the node the cell gets a path with the file's own name and content."""
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n")
    handle = store.put(file)
    assert store.get(handle) == file
    blob = tmp_path / "node" / "blobs" / handle.sha256
    blob.parent.mkdir(parents=True)
    blob.write_bytes(file.read_bytes())
    for _ in range(2):
        there = read_input(handle.codec, blob)
        assert (there.name, there.read_text()) == ("table.csv", "a,b\n1,2\n")
    hidden = read_input("file:../../../etc/passwd", blob)
    assert hidden.parent.parent == tmp_path / "node" / "data"
    with pytest.raises(BadRequest, match="no file"):
        store.put(tmp_path / "absent")


def test_a_handle_inside_of_another_object_is_refused(store: DataStore) -> None:
    """It would arrive as a handle, without what it stands for."""
    with pytest.raises(CodecError, match="data handle"):
        codecs.encode_input([store.put(np.arange(3))])


def test_a_kept_object_is_linked_and_a_changed_file_refused(store: DataStore, tmp_path: Path) -> None:
    """The cluster process takes a kept object without copying; a file that is not what its hash says is not taken."""
    blobs = BlobStore(tmp_path / "blobs")
    handle = store.put(np.arange(1000))
    assert blobs.adopt(handle.sha256, handle.path) == handle.size
    assert blobs.path(handle.sha256).samefile(handle.path)
    file = tmp_path / "file"
    file.write_bytes(b"first")
    named = store.put(file)
    file.write_bytes(b"other")
    with pytest.raises(BadRequest, match="SHA-256"):
        blobs.adopt(named.sha256, file)
    assert not blobs.has(named.sha256)


@pytest.fixture
def large(store: DataStore, tmp_path: Path) -> Data:
    """A handle to a file of the user's that is large enough to be linked."""
    file = tmp_path / "large"
    file.write_bytes(os.urandom(LINKED_BYTES))
    return store.put(file)


def test_a_large_file_is_linked_and_counts_as_long_as_it_is_not_changed(large: Data, tmp_path: Path) -> None:
    """It is not copied; written into afterwards, it is not passed on as what it was, and what it is now is refused."""
    blobs = BlobStore(tmp_path / "blobs")
    assert blobs.adopt(large.sha256, large.path) == large.size
    assert blobs.has(large.sha256)
    assert blobs.path(large.sha256).samefile(large.path)
    blobs.check(large.sha256)

    with large.path.open("r+b") as file:
        file.write(b"other")
    os.utime(large.path, ns=(0, 0))

    assert not blobs.has(large.sha256)
    assert not blobs.path(large.sha256).exists()
    blobs.adopt(large.sha256, large.path)
    with pytest.raises(BadRequest, match="put it again"):
        blobs.check(large.sha256)
    assert not blobs.has(large.sha256)


def test_a_large_file_that_cannot_be_linked_is_copied(
    large: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another disk for example; the copy counts whatever becomes of the file."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    blobs = BlobStore(tmp_path / "blobs")
    blobs.adopt(large.sha256, large.path)
    large.path.write_bytes(b"other")

    assert blobs.has(large.sha256)
    assert hashlib.sha256(blobs.path(large.sha256).read_bytes()).hexdigest() == large.sha256


def test_an_old_file_is_kept_for_a_week_from_its_use(large: Data, tmp_path: Path) -> None:
    """A linked file's own time does not count: it may have been written years ago."""
    os.utime(large.path, ns=(0, 0))
    blobs = BlobStore(tmp_path / "blobs")
    blobs.adopt(large.sha256, large.path)

    blobs.drop_old(set())

    assert blobs.has(large.sha256)


async def test_a_file_changed_while_it_is_brought_says_so(large: Data, tmp_path: Path) -> None:
    """The node's hash differs; the error is about the file, and nothing is sent a second time."""
    blobs = BlobStore(tmp_path / "blobs")
    blobs.adopt(large.sha256, large.path)
    sent: list[Any] = []

    async def answer(message: Any) -> None:
        sent.append(message)
        inputs.stored(BlobStored(sha256=large.sha256, error="not here"))

    class Changing(Bulk):
        async def send(self, path: Path, sha256: str, size: int) -> bool:
            with path.open("r+b") as file:
                file.write(b"other")
            return False

    async def nothing(command: Callable[[Installed], str]) -> tuple[Reader, Writer]:
        raise AssertionError(command)

    inputs = Inputs(blobs, answer, Changing(nothing))
    with pytest.raises(BadRequest, match="put it again"):
        await inputs.bring(large.sha256)
    assert len(sent) == 1


def receiver(folder: NodeFolder, *arguments: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "jupyter_gpumarket.agent.receive", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen([*argv[:4], str(folder.root), *argv[4:]], stdin=pipe, stdout=pipe, cwd=REPOSITORY)


def send(folder: NodeFolder, content: bytes, upto: int) -> list[bytes]:
    """What the node says when it gets bytes as it asks for them, but none from `upto` on."""
    sha256 = hashlib.sha256(content).hexdigest()
    process = receiver(folder, "take", sha256, str(len(content)), "1")
    assert process.stdout is not None
    assert process.stdin is not None
    said = process.stdout.readline().split()
    process.stdin.write(content[int(said[0]) : upto])
    process.stdin.close()
    said += process.stdout.read().split()
    process.stdout.close()
    process.wait(20)
    return [said[0], *said[2:]]


class Shell:
    """Runs a node's commands, on as many channels as it is said to allow."""

    def __init__(self, node: NodeFolder, *, allows_more: bool = True) -> None:
        self.processes: list[asyncio.subprocess.Process] = []
        self.refused = 0
        self._allows_more = allows_more
        self._node = Installed(
            python=sys.executable,
            python_version="3",
            folder=str(node.root),
            versions={},
            steps_ms={},
            attach_command="",
        )

    async def run(self, command: Callable[[Installed], str]) -> tuple[Reader, Writer]:
        line = command(self._node).replace(f"{self._node.folder}/app.zip", str(REPOSITORY))
        if " join " in line and not self._allows_more:
            self.refused += 1
            raise Unreachable("it opens no more channels")
        pipe = subprocess.PIPE
        process = await asyncio.create_subprocess_shell(line, stdin=pipe, stdout=pipe)
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdin is not None
        return process.stdout, process.stdin

    async def end(self) -> None:
        """One that waits for further channels does so for some time."""
        for process in self.processes:
            if process.returncode is None:
                process.kill()
            await process.wait()


@pytest.fixture
def node(tmp_path: Path) -> NodeFolder:
    folder = NodeFolder(tmp_path / "node")
    folder.make()
    return folder


def test_an_interrupted_transfer_goes_on_where_it_stopped(node: NodeFolder) -> None:
    """The node says what it has, takes only the rest, tells the hash of all, and the agent keeps it."""
    content = os.urandom(3_000_000)
    sha256 = hashlib.sha256(content).hexdigest()
    blobs = Blobs(node)
    assert send(node, content, 1_200_000) == [b"0"]
    assert "not whole" in blobs.take(TakeBlob(sha256=sha256, size=len(content))).error
    assert send(node, content, len(content)) == [b"1200000", sha256.encode()]
    assert blobs.take(TakeBlob(sha256=sha256, size=len(content), is_checked=True)).error == ""
    assert node.blob(sha256).read_bytes() == content


def test_a_beginning_with_other_bytes_is_thrown_away(node: NodeFolder) -> None:
    """What lay there is hashed too: it is not kept, and the next try begins anew."""
    content = os.urandom(2_000_000)
    sha256 = hashlib.sha256(content).hexdigest()
    node.blob(sha256).with_suffix(".in").write_bytes(b"x" * 1000)
    assert send(node, content, len(content)) != [b"1000", sha256.encode()]
    assert not node.blob(sha256).with_suffix(".in").exists()
    assert send(node, content, len(content)) == [b"0", sha256.encode()]


def test_stripes_are_put_together_in_order(node: NodeFolder) -> None:
    """Pieces that come by three channels, each at its own pace, make up the file; it goes on after what was there."""
    assert receive.PIECE_BYTES == bulk.PIECE_BYTES, "both ends must cut alike"
    content = os.urandom(5 * bulk.PIECE_BYTES + 1234)
    sha256 = hashlib.sha256(content).hexdigest()
    node.blob(sha256).with_suffix(".in").write_bytes(content[:100])
    main = receiver(node, "take", sha256, str(len(content)), "3")
    assert main.stdout is not None
    have, token = main.stdout.readline().split()
    assert have == b"100"
    stripes = [main, *(receiver(node, "join", sha256, token.decode(), str(n)) for n in (1, 2))]

    def write(number: int) -> None:
        stdin = stripes[number].stdin
        assert stdin is not None
        for at in range(100 + number * bulk.PIECE_BYTES, len(content), 3 * bulk.PIECE_BYTES):
            stdin.write(content[at : at + bulk.PIECE_BYTES])
        stdin.flush()

    # In threads, since a pipe whose turn has not come is full soon.
    writing = [threading.Thread(target=write, args=(number,)) for number in (2, 0, 1)]
    for one in writing:
        one.start()
    assert main.stdout.read().strip() == sha256.encode()
    for one in writing:
        one.join(20)
    for stripe in stripes:
        assert stripe.wait(20) == 0, "the others end with the first"
        for pipe in (stripe.stdin, stripe.stdout):
            pipe.close()  # type: ignore[union-attr]
    assert node.blob(sha256).with_suffix(".in").read_bytes() == content


async def test_a_server_that_allows_one_channel_gets_all_on_it(node: NodeFolder, tmp_path: Path) -> None:
    """Refused further ones, an input goes by one, beside the conversation all the same; the next asks for no more."""
    content = os.urandom(4 * bulk.BULK_BYTES)
    path = tmp_path / "input"
    path.write_bytes(content)
    sha256 = hashlib.sha256(content).hexdigest()
    shell = Shell(node, allows_more=False)
    ways = Bulk(shell.run, lambda: 100.0)
    part = node.blob(sha256).with_suffix(".in")
    for _ in range(2):
        assert await ways.send(path, sha256, len(content))
        assert part.read_bytes() == content
        part.unlink()
    assert shell.refused == 5, "the further ones of the first time, and none of the second"
    await shell.end()


async def test_a_wrong_beginning_costs_another_go(node: NodeFolder, tmp_path: Path) -> None:
    """What another node sent may be anything: it is found out, and all of it comes from here in the same way."""
    path = tmp_path / "input"
    path.write_bytes(content := os.urandom(bulk.BULK_BYTES))
    sha256 = hashlib.sha256(content).hexdigest()
    part = node.blob(sha256).with_suffix(".in")
    part.write_bytes(b"x" * 1_000_000)
    shell = Shell(node)

    assert await Bulk(shell.run).send(path, sha256, len(content))
    assert part.read_bytes() == content
    assert len(shell.processes) == 2
    await shell.end()


def test_how_many_channels() -> None:
    """One where the round trip is short or unknown, more where it is long, never for little."""
    assert [bulk.stripes_for(10**9, ms) for ms in (None, 1.0, 40.0, 200.0)] == [1, 1, 4, 6]
    assert bulk.stripes_for(bulk.BULK_BYTES, 200.0) == 1


def test_wrong_bytes_beside_the_channel_are_not_kept(tmp_path: Path) -> None:
    """As long as it should be, with another hash: thrown away, so that the next try begins anew."""
    folder = NodeFolder(tmp_path / "node")
    folder.make()
    sha256 = hashlib.sha256(b"right").hexdigest()
    source = folder.blob(sha256).with_suffix(".in")
    source.write_bytes(b"wrong")
    assert Blobs(folder).take(TakeBlob(sha256=sha256, size=5)).error
    assert not source.exists()
    assert not folder.blob(sha256).exists()


async def test_an_output_is_sent_from_any_offset(tmp_path: Path) -> None:
    """The command gives exactly the bytes from an offset on, whatever the variable is called."""
    out = tmp_path / "runs" / "run-1" / f"out-{'größe'.encode().hex()}"
    out.parent.mkdir(parents=True)
    out.write_bytes(bytes(range(200)))
    process = await asyncio.create_subprocess_shell(
        send_command(str(tmp_path), "run-1", "größe", 150), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    assert told == bytes(range(150, 200))
