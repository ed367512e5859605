"""Handles to data by content, and the way of large bytes to a node."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.agent.blobs import Blobs
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.agent.variables import read_input
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.errors import BadRequest, CodecError
from jupyter_gpumarket.notebook.data import DataStore
from jupyter_gpumarket.wire.bulk import TakeBlob, receive_command, send_command


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


def test_an_interrupted_transfer_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """The node says what it has, takes only the rest, and the agent keeps it when its hash is right."""
    folder = NodeFolder(tmp_path / "node")
    folder.make()
    content = os.urandom(300_000)
    sha256 = hashlib.sha256(content).hexdigest()
    command = receive_command(str(folder.root), sha256, len(content))

    def send(begin: int, end: int) -> list[bytes]:
        argv = ["sh", "-c", command]
        done = subprocess.run(argv, input=content[begin:end], capture_output=True, timeout=20, check=True)
        return done.stdout.split()

    assert send(0, 300_000) == [b"0", sha256.encode()], "in one go it is hashed on its way"
    folder.blob(sha256).with_suffix(".in").unlink()
    assert send(0, 100_000)[0] == b"0"
    blobs = Blobs(folder)
    order = TakeBlob(sha256=sha256, size=len(content))
    assert "not whole" in blobs.take(order).error
    assert send(100_000, 300_000) == [b"100000", b"done"]
    assert blobs.take(order).error == ""
    assert folder.blob(sha256).read_bytes() == content


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
