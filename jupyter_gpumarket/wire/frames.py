"""Frames: how messages lie on a byte stream. Pure, no I/O.

A frame is a four-byte big-endian length and that many bytes of msgpack. Both ends decode with a closed set of types;
the length is checked before anything of that size is kept, so a hostile peer costs at most one frame of memory.
"""

from __future__ import annotations

import struct
from typing import Annotated, TypeVar

import msgspec

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.messages import MAX_FRAME_BYTES

LENGTH = struct.Struct(">I")
# Room in a frame for what surrounds a message.
FRAME_OVERHEAD_BYTES = 64
MAX_PAYLOAD_BYTES = MAX_FRAME_BYTES - FRAME_OVERHEAD_BYTES

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


class FrameDecoder:
    """Cuts a stream, arriving in pieces of any size, into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[AnyFrame]:
        """The frames that `data` completes.

        Raises:
            WireError: the stream is not made of frames. The decoder must not be used afterwards.
        """
        self._buffer += data
        frames: list[AnyFrame] = []
        while (body := self._next_body()) is not None:
            frames.append(decode_message(_DECODER, body))
        return frames

    @property
    def buffered_bytes(self) -> int:
        """What is kept of a frame that is not whole yet."""
        return len(self._buffer)

    def _next_body(self) -> bytes | None:
        if len(self._buffer) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._buffer)
        if not 0 < length <= MAX_FRAME_BYTES:
            raise WireError(f"a frame announces {length} bytes; 1 to {MAX_FRAME_BYTES} are allowed")
        end = LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[LENGTH.size : end])
        del self._buffer[:end]
        return body
