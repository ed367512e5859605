"""Data by content: `gm.put` gives a handle, `-i` and `--map` bring what it stands for to each node once.

A handle to an object holds its encoded bytes in the user's own state folder; a handle to a file only names it, so that
nothing is copied here. On a node the first becomes the object, the second a path to the file under its own name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jupyter_gpumarket import codecs
from jupyter_gpumarket.codecs.hashing import write_in_steps
from jupyter_gpumarket.config import Folders, private_folder
from jupyter_gpumarket.errors import BadRequest, CodecError

KEPT_S = 7 * 24 * 3600.0
PIECE_BYTES = 1024 * 1024
# From here on an object is hashed and written at the same time.
TOGETHER_BYTES = 16 * 1024 * 1024
FILE = "file"


class Data:
    """A handle to bytes, by their SHA-256. `codec` says how a node reads them; `path` is where they lie here."""

    def __init__(self, *, sha256: str, size: int, codec: str, path: Path, name: str = "") -> None:
        self.sha256 = sha256
        self.size = size
        self.codec = codec
        self.path = path
        self.name = name

    def __repr__(self) -> str:
        what = f"file {self.name}" if self.codec.startswith(f"{FILE}:") else self.name or "object"
        return f"<data {self.sha256[:12]}: {what}, {size_words(self.size)}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Data) and (self.sha256, self.codec) == (other.sha256, other.codec)

    def __hash__(self) -> int:
        return hash((self.sha256, self.codec))

    def __reduce__(self) -> Any:
        raise TypeError("a data handle is brought to a node by -i or --map, not inside of another object")


class DataStore:
    """The folder of encoded objects. What nobody used for a week goes."""

    def __init__(self, folders: Folders) -> None:
        self._folder = private_folder(folders.state / "data")

    def put(self, value: Any) -> Data:
        """A handle to a file (its path) or an object.

        Raises:
            BadRequest: no such file.
            CodecError: an object that cannot be sent.
        """
        if isinstance(value, Data):
            return value
        if isinstance(value, str | os.PathLike):
            return _of_file(Path(value))
        if is_large_array(value):
            return self.keep_array(value, name=type(value).__name__)
        encoded = codecs.encode_input(value)
        return self.keep(encoded.codec, encoded.data, name=type(value).__name__)

    def keep_array(self, array: Any, *, name: str = "") -> Data:
        """A handle to a large array, which is not held in memory a second time.

        Raises:
            CodecError: an array that cannot be sent.
        """
        draft = self._draft()
        try:
            written = codecs.encode_into(array, draft)
        except BaseException:
            draft.unlink(missing_ok=True)  # the disk is full, or Ctrl-C was pressed
            raise
        path = self._named(draft, written.sha256)
        return Data(sha256=written.sha256, size=written.size, codec=written.codec, path=path, name=name)

    def keep(self, codec: str, data: bytes, *, name: str = "") -> Data:
        """A handle to encoded bytes."""
        if len(data) < TOGETHER_BYTES:
            sha256 = hashlib.sha256(data).hexdigest()
            path = self._folder / sha256
            if not path.exists():
                self._written(data).replace(path)
            os.utime(path)
        else:
            # Hashed while it is written, since both take their time; what was here before is written once more.
            with ThreadPoolExecutor(1) as pool:
                hashing = pool.submit(lambda: hashlib.sha256(data).hexdigest())
                draft = self._written(data)
                sha256 = hashing.result()
            path = self._named(draft, sha256)
        return Data(sha256=sha256, size=len(data), codec=codec, path=path, name=name)

    @staticmethod
    def get(data: Data) -> Any:
        """What a handle stands for: the object, or the path of the file. The bytes are checked first.

        Raises:
            CodecError: they are gone, or are not what they were, or only unpickling could read them.
        """
        if data.codec.startswith(f"{FILE}:"):
            return data.path
        content = data.path.read_bytes() if data.path.exists() else b""
        if data.codec == codecs.CLOUDPICKLE:
            raise CodecError(
                f"{data!r} is a pickle: nodes can have it by -i or --map, but nothing is unpickled here; "
                "keep the object itself, or put it as arrays, a table or plain values"
            )
        if hashlib.sha256(content).hexdigest() != data.sha256:
            raise CodecError(f"{data!r} is not kept any more, or has been changed; put it again")
        return codecs.decode(data.codec, content)

    def _draft(self) -> Path:
        """A new empty file of no name yet."""
        self._drop_old()
        draft = self._folder / f"{os.urandom(8).hex()}.part"
        os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
        return draft

    def _named(self, draft: Path, sha256: str) -> Path:
        """Where the content lies from now on; it may have been here before."""
        path = self._folder / sha256
        draft.unlink() if path.exists() else draft.replace(path)
        os.utime(path)
        return path

    def _written(self, data: bytes) -> Path:
        """A new file with these bytes."""
        draft = self._draft()
        try:
            with draft.open("wb") as file:
                write_in_steps(file, data)
        except BaseException:
            draft.unlink(missing_ok=True)  # the disk is full, or Ctrl-C was pressed
            raise
        return draft

    def _drop_old(self) -> None:
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another kernel has just given it its name, or dropped it
                if time.time() - path.stat().st_mtime > KEPT_S:
                    path.unlink()


def is_large_array(value: Any) -> bool:
    """Whether it is written as it is, piece by piece, instead of being made into bytes first."""
    return codecs.is_plain_array(value) and value.nbytes >= TOGETHER_BYTES


def _of_file(path: Path) -> Data:
    path = path.expanduser().absolute()
    if not path.is_file():
        raise BadRequest(f"put: there is no file {path}; put a folder as an archive")
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return Data(sha256=digest.hexdigest(), size=size, codec=f"{FILE}:{path.name}", path=path, name=path.name)


def size_words(size: int) -> str:
    """`12 MB`, as people say it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
