"""The outcomes of a map on disk: appended, each with its checksum; what a crash left half is cut off on opening.

A line is either the end of an item (`view`) or a try that did not end it. Ends are numbered 1, 2, 3 ... in their order.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from jupyter_gpumarket.api import ItemView
from jupyter_gpumarket.models import Record

OUTCOMES_NAME = "outcomes.log"
_HEAD = struct.Struct("<II")


class Line(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How a try ended: entry (a second run has a number past the items), attempt, node; and the item's end, if so."""

    entry: int
    attempt: int
    lease_id: str
    status: str
    view: ItemView | None = None


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Line)


class OutcomeLog:
    """The file of one map; a single writer."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OUTCOMES_NAME
        self._ends: list[int] = []
        self._size = 0
        self._file: IO[bytes] | None = None

    @property
    def count(self) -> int:
        """The number of the last end."""
        return len(self._ends)

    def recover(self) -> Iterator[Line]:
        """Every whole line, in order; what follows the last one is cut off. Call it once, before all else."""
        if not self._path.exists():
            return
        for line, begin, end in read_lines(self._path):
            if line.view is not None:
                self._ends.append(begin)
            self._size = end
            yield line
        os.truncate(self._path, self._size)

    def append(self, line: Line) -> None:
        """Keep a line; it is with the operating system when this returns.

        Raises:
            OSError: the disk is full or failing; nothing was kept.
        """
        data = _encoder.encode(line)
        record = _HEAD.pack(len(data), zlib.crc32(data)) + data
        if self._file is None:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            self._file.seek(self._size)
            view = memoryview(record)
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        if line.view is not None:
            self._ends.append(self._size)
        self._size += len(record)

    def sync(self) -> None:
        """Make all of it survive a power cut; blocks.

        Raises:
            OSError: the disk is failing.
        """
        if self._file is not None:
            os.fdatasync(self._file.fileno())

    def read(self, after: int, most: int, most_bytes: int) -> list[ItemView]:
        """Ends with numbers greater than `after`; not more than fit well into one answer."""
        found: list[ItemView] = []
        if after >= len(self._ends):
            return found
        begin = self._ends[after]
        for line, _, end in read_lines(self._path, begin):
            if line.view is not None:
                found.append(line.view)
            if len(found) >= most or end - begin > most_bytes:
                break
        return found

    def close(self) -> None:
        """Close the file; a later `append` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[Line, int, int]]:
    """The whole lines of a file from an offset on, each with where it begins and ends."""
    with path.open("rb") as file:
        file.seek(offset)
        while len(head := file.read(_HEAD.size)) == _HEAD.size:
            length, checksum = _HEAD.unpack(head)
            data = file.read(length)
            if len(data) < length or zlib.crc32(data) != checksum:
                return
            try:
                line = _decoder.decode(data)
            except msgspec.MsgspecError:
                return
            begin, offset = offset, offset + _HEAD.size + length
            yield line, begin, offset


def find_map(clusters: Path, map_id: str) -> Path | None:
    """The folder of a map in whichever cluster ran it last, below the folder of all clusters."""
    found = [path.parent for path in clusters.glob(f"*/maps/{map_id}/state.json")]
    return max(found, key=lambda folder: (folder / "state.json").stat().st_mtime_ns) if found else None
