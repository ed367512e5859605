"""One worker process of a map: a cell's body, once per item, in a namespace that no other item sees.

Talks with the agent over the inherited socket: frames of four bytes length and msgpack. Streams of the body go into
the item's outcome; what programs write past Python goes to the worker's log, whose end is a death's last words.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import io
import linecache
import socket
import struct
import sys
import time
import traceback
from pathlib import Path
from types import CodeType
from typing import Any

import msgspec

from jupyter_gpumarket.agent import variables
from jupyter_gpumarket.agent.launcher import die_with_parent
from jupyter_gpumarket.wire.mapping import MAX_INLINE_BYTES, MAX_ITEM_TEXT

LENGTH = struct.Struct("<I")
MAX_TRACEBACK_LINES = 60


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One item for a worker. Its value is in `data` or in the file `path`; a large result goes to `result_path`."""

    index: int
    attempt: int
    codec: str
    data: bytes = b""
    path: str = ""
    result_path: str


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame: what every item of this worker shares. Inputs are (name, codec, path)."""

    code: str
    item_name: str
    gives_result: bool
    inputs: tuple[tuple[str, str, str], ...] = ()


class Done(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The worker's answer to a task."""

    status: str
    took_ms: int
    codec: str = ""
    size: int = 0
    sha256: str = ""
    data: bytes = b""
    stdout: str = ""
    stderr: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()


class Body:
    """The cell's body, compiled: statements, and the last expression apart when it is the result."""

    def __init__(self, code: str, *, gives_result: bool) -> None:
        """Compile.

        Raises:
            SyntaxError: the code is none.
        """
        name = "<%%gpu --map>"
        # So that tracebacks show the body's lines.
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        self._last: CodeType | None = None
        if gives_result and tree.body and isinstance(tree.body[-1], ast.Expr):
            last = tree.body.pop()
            assert isinstance(last, ast.Expr)
            self._last = compile(ast.Expression(last.value), name, "eval")
        self._statements = compile(tree, name, "exec")

    def run(self, namespace: dict[str, Any]) -> Any:
        """Run once; the value of the last expression, or None."""
        exec(self._statements, namespace)  # noqa: S102 - the user's own code, on the user's rented node
        return None if self._last is None else eval(self._last, namespace)  # noqa: S307


class BoundedText(io.StringIO):
    """Text that is kept up to a bound; the rest is counted."""

    def __init__(self) -> None:
        super().__init__()
        self._left = MAX_ITEM_TEXT
        self._lost = 0

    def write(self, text: str) -> int:
        """Keep what there is room for."""
        kept = text[: self._left]
        self._left -= len(kept)
        self._lost += len(text) - len(kept)
        super().write(kept)
        return len(text)

    def text(self) -> str:
        """What was kept, and how much was not."""
        more = f"\n[{self._lost} characters more were left out]\n" if self._lost else ""
        return self.getvalue().encode("utf-8", "replace").decode() + more


class Worker:
    """Takes tasks one after another."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._body: Body | None = None
        self._shared: dict[str, Any] = {}
        self._trouble: BaseException | None = None
        try:
            importlib.import_module("jupyter_gpumarket.codecs")  # before the first item waits for it
            self._body = Body(setup.code, gives_result=setup.gives_result)
            for name, codec, path in setup.inputs:
                self._shared[name] = variables.read_input(codec, Path(path))
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's own code; each item tells of it
            self._trouble = error

    def run(self, task: Task) -> Done:
        """Run the body for one item. Whatever it raises is its outcome."""
        out, err = BoundedText(), BoundedText()
        began = time.monotonic()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                value = self._value(task)
                fields = self._encoded(value, task) if self._setup.gives_result else {}
        except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a body end it, not the worker
            fields = told(error)
        took_ms = round((time.monotonic() - began) * 1000)
        return Done(took_ms=took_ms, stdout=out.text(), stderr=err.text(), **{"status": "ok", **fields})

    def _value(self, task: Task) -> Any:
        if self._trouble is not None:
            raise self._trouble
        assert self._body is not None
        if task.path:
            item = variables.read_input(task.codec, Path(task.path))
        else:
            item = variables.decode_input(task.codec, task.data)
        return self._body.run({"__name__": "__main__", **self._shared, self._setup.item_name: item})

    @staticmethod
    def _encoded(value: Any, task: Task) -> dict[str, Any]:
        from jupyter_gpumarket import codecs

        encoded = codecs.encode(value)
        size = len(encoded.data)
        fields = {"codec": encoded.codec, "size": size, "sha256": hashlib.sha256(encoded.data).hexdigest()}
        if size <= MAX_INLINE_BYTES:
            return {**fields, "data": encoded.data}
        Path(task.result_path).write_bytes(encoded.data)
        return fields


def told(error: BaseException) -> dict[str, Any]:
    """An exception of the body, without our own frames."""
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parent
    lines = traceback.format_list([frame for frame in frames if Path(frame.filename).parent != own])
    lines += traceback.format_exception_only(error)
    text = [line.rstrip("\n")[-4000:] for line in lines][-MAX_TRACEBACK_LINES:]
    safe = tuple(line.encode("utf-8", "replace").decode() for line in text)
    value = str(error)[-4000:].encode("utf-8", "replace").decode()
    return {"status": "error", "error_name": type(error).__name__[:200], "error_value": value, "traceback": safe}


def receive(channel: socket.socket) -> bytes | None:
    """The next frame, or None at the end."""
    head = channel.recv(LENGTH.size, socket.MSG_WAITALL)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    body = bytearray()
    while len(body) < length:
        piece = channel.recv(length - len(body))
        if not piece:
            return None
        body += piece
    return bytes(body)


def main() -> None:
    """Work until the agent closes the socket whose descriptor the command line names."""
    die_with_parent()
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    first = receive(channel)
    if first is None:
        return
    worker = Worker(msgspec.msgpack.decode(first, type=Setup))
    channel.sendall(LENGTH.pack(0))
    tasks = msgspec.msgpack.Decoder(Task)
    while (frame := receive(channel)) is not None:
        answer = msgspec.msgpack.encode(worker.run(tasks.decode(frame)))
        channel.sendall(LENGTH.pack(len(answer)) + answer)


if __name__ == "__main__":
    main()
