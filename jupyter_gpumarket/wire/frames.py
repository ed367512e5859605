"""Frames: how messages lie on a byte stream. Pure, no I/O.

A frame is a four-byte big-endian length and that many bytes of msgpack. Both ends decode with a closed set of types;
the length is checked before anything of that size is kept, so a hostile peer costs at most one frame of memory.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Annotated, TypeVar

import msgspec

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.messages import MAX_FRAME_BYTES

LENGTH = struct.Struct(">I")
# Room in a frame for what surrounds a message.
FRAME_OVERHEAD_BYTES = 64
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES
# Payloads from here on are written without being copied into their frame; msgpack gives them a length of four bytes.
LARGE_BYTES = 65536
SMALL_BYTES = 4096

Number = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
BootId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]

T = TypeVar("T")


class Frame(msgspec.Struct, frozen=True, kw_only=True, array_like=True, forbid_unknown_fields=True):
    """Base of all frames."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=0):
    """First frame of an attachment, from both ends.

    `to_boot` names the incarnation of the other end that `received` counts for (empty: none known yet). `stream` counts
    the dialling end's streams: hellos may arrive in another order than they were said. Unknown trailing fields are let
    through, so that a newer peer is refused by its version and not by its shape.
    """

    protocol: Number
    boot: BootId
    to_boot: Annotated[str, msgspec.Meta(max_length=64)]
    received: Number
    stream: Number


class Data(Frame, frozen=True, kw_only=True, tag=1):
    """Message number `seq`, counted from 1."""

    seq: Number
    payload: bytes


class Ack(Frame, frozen=True, kw_only=True, tag=2):
    """Messages up to `upto` have been taken by the application; the sender forgets them."""

    upto: Number


class Ping(Frame, frozen=True, kw_only=True, tag=3):
    """Asks for a Pong with the same number."""

    number: Number


class Pong(Frame, frozen=True, kw_only=True, tag=4):
    """Answers a Ping."""

    number: Number


AnyFrame = Hello | Data | Ack | Ping | Pong

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(AnyFrame)


def encode_frame(frame: AnyFrame) -> bytes:
    """The frame's bytes.

    Raises:
        WireError: it would be larger than a frame may be.
    """
    body = _ENCODER.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {len(body)} bytes is larger than the limit of {MAX_FRAME_BYTES}")
    return LENGTH.pack(len(body)) + body


def decode_message(decoder: msgspec.msgpack.Decoder[T], data: bytes) -> T:
    """One typed value from bytes of a peer.

    Raises:
        WireError: the bytes are not such a value. The text names the field, and quotes nothing of the content.
    """
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, ValueError, OverflowError) as error:
        raise WireError(f"a message that cannot be read: {str(error)[:200]}") from None
    except (RecursionError, MemoryError):
        raise WireError("a message nested too deeply or announcing more than it holds") from None


def data_frame(seq: int, payload: bytes) -> tuple[bytes, ...]:
    """The bytes of a Data frame, in parts that are to be written one after another: a large payload is not copied.

    Raises:
        WireError: it would be larger than a frame may be.
    """
    if len(payload) < LARGE_BYTES:
        return (encode_frame(Data(seq=seq, payload=payload)),)
    start = b"\x93\x01" + _ENCODER.encode(seq) + b"\xc6" + LENGTH.pack(len(payload))
    size = len(start) + len(payload)
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a frame of {size} bytes is larger than the limit of {MAX_FRAME_BYTES}")
    return (LENGTH.pack(size) + start, payload)


class FrameDecoder:
    """Cuts a stream, arriving in pieces of any size, into frames. Bytes are joined once, when their frame is whole."""

    def __init__(self) -> None:
        self._pieces: deque[bytes | bytearray] = deque()
        self._at = 0
        self._size = 0
        self._length = 0

    def feed(self, data: bytes) -> list[AnyFrame]:
        """The frames that `data` completes.

        Raises:
            WireError: the stream is not made of frames. The decoder must not be used afterwards.
        """
        self._keep(data)
        frames: list[AnyFrame] = []
        while (body := self._next_body()) is not None:
            frames.append(decode_message(_DECODER, body))
        return frames

    @property
    def buffered_bytes(self) -> int:
        """What is kept of a frame that is not whole yet."""
        return self._size

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if len(data) >= SMALL_BYTES:
            self._pieces.append(data)
            return
        # Tiny pieces go into one: each alone would cost more than what is in it.
        if not self._pieces or not isinstance(last := self._pieces[-1], bytearray) or len(last) > LARGE_BYTES:
            self._pieces.append(last := bytearray())
        last += data

    def _next_body(self) -> bytes | None:
        if not self._length:
            if self._size < LENGTH.size:
                return None
            (self._length,) = LENGTH.unpack(self._take(LENGTH.size))
            if not 0 < self._length <= MAX_FRAME_BYTES:
                raise WireError(f"a frame announces {self._length} bytes; 1 to {MAX_FRAME_BYTES} are allowed")
        if self._size < self._length:
            return None
        body = self._take(self._length)
        self._length = 0
        return body

    def _take(self, count: int) -> bytes:
        self._size -= count
        parts: list[bytes | bytearray | memoryview] = []
        while count:
            first = self._pieces[0]
            left = len(first) - self._at
            if left > count:
                parts.append(memoryview(first)[self._at : self._at + count])
                self._at += count
                break
            parts.append(memoryview(first)[self._at :])
            self._pieces.popleft()
            self._at = 0
            count -= left
        return b"".join(parts)
