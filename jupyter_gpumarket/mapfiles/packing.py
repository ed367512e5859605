"""Many items in one file: each as four bytes of length and msgpack, so that any can be read without the others."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path

import msgspec

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Record

_LENGTH = struct.Struct("<I")


class PackedItem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One item's value: its bytes, or the blob that holds them."""

    codec: str
    data: bytes = b""
    sha256: str = ""


_decoder = msgspec.msgpack.Decoder(PackedItem)


def pack(items: Iterable[PackedItem]) -> bytes:
    """The file's content."""
    content = bytearray()
    for item in items:
        data = msgspec.msgpack.encode(item)
        content += _LENGTH.pack(len(data)) + data
    return bytes(content)


class PackReader:
    """Reads items by their number, counted from 0."""

    def __init__(self, path: Path) -> None:
        """Find where each item begins.

        Raises:
            BadRequest: the file is not what `pack` writes.
        """
        self._path = path
        self._offsets: list[int] = []
        size = path.stat().st_size
        with path.open("rb") as file:
            offset = 0
            while offset < size:
                head = file.read(_LENGTH.size)
                if len(head) < _LENGTH.size:
                    raise BadRequest("items_sha256: that blob does not hold packed items")
                self._offsets.append(offset)
                offset += _LENGTH.size + _LENGTH.unpack(head)[0]
                file.seek(offset)
        if offset != size:
            raise BadRequest("items_sha256: that blob does not hold packed items")

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, indexes: Iterable[int]) -> list[PackedItem]:
        """These items, in this order.

        Raises:
            BadRequest: one of them is no packed item.
        """
        found: list[PackedItem] = []
        with self._path.open("rb") as file:
            for index in indexes:
                file.seek(self._offsets[index])
                (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
                try:
                    found.append(_decoder.decode(file.read(length)))
                except msgspec.MsgspecError:
                    raise BadRequest(f"items_sha256: item {index} in that blob cannot be read") from None
        return found
