"""One cell run's output on disk: numbered messages for the doors, and a file for what is beyond the bound.

What must hold after a kill at any instant:
1. A message that a door has seen, or that the node was told is saved, is in the log.
2. No message is in it twice and none is missing. Each line holds the node's own number (`a`) beside ours, and each
   spilled piece has its end and its number in an index; half lines and pieces beyond the index are cut off on opening,
   and the node sends them again.
3. Our numbers count from 1 without gaps, although spilled messages have none.

Past `limit_bytes` stream output goes to the spill file; displays and errors still reach the log up to a hard bound.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO, Any

import msgspec

from jupyter_gpumarket.api import RunMessage
from jupyter_gpumarket.models import Record

MIB = 1024 * 1024
HARD_LIMIT_BYTES = 64 * MIB
SPILL_LIMIT_BYTES = 4 * 1024 * MIB
BATCH_MESSAGES = 2000
BATCH_BYTES = 4 * MIB
SPILL_NAME = "output.txt"
_INDEX = struct.Struct("<QQ")


class _Line(RunMessage, frozen=True, kw_only=True):
    """A message as it is written: with the node's number."""

    a: int


class _Numbers(Record, frozen=True, kw_only=True):
    """The numbers of a line; the rest is not looked at."""

    n: int
    a: int
    msg_type: str


_encoder = msgspec.json.Encoder()
_numbers = msgspec.json.Decoder(_Numbers)
_messages = msgspec.json.Decoder(RunMessage)


class RunLog:
    """The output of one run. Single writer; opened files are closed between writes only by `close`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._path = folder / "messages.jsonl"
        self._index_path = folder / "spill.index"
        self.spill_path = folder / SPILL_NAME
        self._limit_bytes = limit_bytes
        self._ends: list[int] = [0]
        self.agent_upto = 0
        self._spilled_bytes = 0
        self._is_truncated = False
        self._files: dict[str, IO[bytes]] = {}
        self._recover()

    @property
    def count(self) -> int:
        """The number of the last message."""
        return len(self._ends) - 1

    @property
    def has_spilled(self) -> bool:
        """Whether some output is in the spill file only."""
        return self._is_truncated

    def append(self, number: int, at_ms: int, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Keep the node's message `number`; it is with the operating system when this returns.

        Raises:
            OSError: the disk is full or failing. Nothing was kept; the same message can be given again.
        """
        written = self._ends[-1]
        if written >= self._limit_bytes and (msg_type == "stream" or written >= HARD_LIMIT_BYTES + self._limit_bytes):
            self._spill(number, at_ms, msg_type, content)
            return
        self._write_line(number, at_ms, msg_type, content, metadata)
        self.agent_upto = number

    def skip(self, number: int) -> None:
        """Pass over the node's message `number`, which no door may see."""
        self.agent_upto = max(self.agent_upto, number)

    def read(self, after: int) -> list[RunMessage]:
        """Messages with numbers greater than `after`; not more than fit well into one answer."""
        after = max(0, min(after, self.count))
        last = min(self.count, after + BATCH_MESSAGES)
        while last > after + 1 and self._ends[last] - self._ends[after] > BATCH_BYTES:
            last = after + max(1, (last - after) // 2)
        if last == after:
            return []
        with self._path.open("rb") as file:
            file.seek(self._ends[after])
            data = file.read(self._ends[last] - self._ends[after])
        return [_messages.decode(line) for line in data.splitlines()]

    @property
    def is_open(self) -> bool:
        """Whether there is something that `sync` has not to pass over."""
        return bool(self._files)

    def sync(self) -> None:
        """Make everything kept so far survive a power cut.

        Raises:
            OSError: the disk is failing.
        """
        for name in ("messages", "spill", "index"):
            if name in self._files:
                os.fdatasync(self._files[name].fileno())

    def close(self) -> None:
        """Close the files; a later `append` opens them again."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _recover(self) -> None:
        if self._path.exists():
            self._recover_messages()
        if self._index_path.exists():
            self._recover_spill()

    def _recover_messages(self) -> None:
        with self._path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    found = _numbers.decode(line)
                except msgspec.MsgspecError:
                    break
                self._ends.append(self._ends[-1] + len(line))
                self.agent_upto = max(self.agent_upto, found.a)
                self._is_truncated = self._is_truncated or found.msg_type == "truncated"
        os.truncate(self._path, self._ends[-1])

    def _recover_spill(self) -> None:
        whole = self._index_path.read_bytes()
        entries = len(whole) // _INDEX.size
        os.truncate(self._index_path, entries * _INDEX.size)
        number, end = _INDEX.unpack_from(whole, (entries - 1) * _INDEX.size) if entries else (0, 0)
        self.agent_upto = max(self.agent_upto, number)
        self._spilled_bytes = end
        if self.spill_path.exists():
            os.truncate(self.spill_path, end)

    def _write_line(
        self, number: int, at_ms: int, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]
    ) -> None:
        line = _Line(n=self.count + 1, a=number, at_ms=at_ms, msg_type=msg_type, content=content, metadata=metadata)
        data = _encoder.encode(line) + b"\n"
        self._append("messages", self._path, self._ends[-1], data)
        self._ends.append(self._ends[-1] + len(data))

    def _spill(self, number: int, at_ms: int, msg_type: str, content: dict[str, Any]) -> None:
        if not self._is_truncated:
            self._write_line(number - 1, at_ms, "truncated", self._notice(), {})
            self._is_truncated = True
        text = content.get("text") if msg_type == "stream" else f"[{msg_type} left out]\n"
        data = (text if isinstance(text, str) else "").encode("utf-8", "replace")
        if self._spilled_bytes + len(data) > SPILL_LIMIT_BYTES:
            data = b""
        self._append("spill", self.spill_path, self._spilled_bytes, data)
        index_end = self._index_path.stat().st_size if self._index_path.exists() else 0
        self._append("index", self._index_path, index_end, _INDEX.pack(number, self._spilled_bytes + len(data)))
        self._spilled_bytes += len(data)
        self.agent_upto = number

    def _notice(self) -> dict[str, Any]:
        return {
            "text": f"the output is longer than {self._limit_bytes:,} bytes; the rest goes to {self.spill_path}",
            "path": str(self.spill_path),
            "limit_bytes": self._limit_bytes,
        }

    def _append(self, name: str, path: Path, end: int, data: bytes) -> None:
        """Write at `end`; a write that failed half way is cut off again before the error is passed on."""
        file = self._files.get(name)
        if file is None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            file = self._files[name] = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            file.seek(end)
            view = memoryview(data)
            while view:
                view = view[file.write(view) :]
        except OSError:
            file.truncate(end)
            raise
