"""Frames: limits hold before memory is spent, and bad bytes are only ever a WireError."""

from __future__ import annotations

import contextlib
import tracemalloc

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.errors import WireError
from jupyter_gpumarket.wire.frames import (
    LARGE_BYTES,
    LENGTH,
    Data,
    FrameDecoder,
    data_frame,
    decode_message,
    encode_frame,
)
from jupyter_gpumarket.wire.messages import MAX_FRAME_BYTES, Order, Report


@given(payloads=st.lists(st.binary(max_size=300), max_size=10), cuts=st.lists(st.integers(1, 50), min_size=1))
def test_any_chunking_gives_the_same_frames(payloads: list[bytes], cuts: list[int]) -> None:
    """Frames come out whole and in order, however the stream was cut."""
    sent = [Data(seq=n, payload=payload) for n, payload in enumerate(payloads, start=1)]
    stream = b"".join(map(encode_frame, sent))
    decoder, got, at = FrameDecoder(), [], 0
    while at < len(stream):
        size = cuts[len(got) % len(cuts)]
        got += decoder.feed(stream[at : at + size])
        at += size

    assert got == sent
    assert decoder.buffered_bytes == 0


@pytest.mark.parametrize("seq", [1, 200, 70_000, 2**40])
@pytest.mark.parametrize("size", [0, 300, LARGE_BYTES - 1, LARGE_BYTES, 300_000])
def test_a_large_payload_goes_out_as_the_same_bytes(seq: int, size: int) -> None:
    """The frame whose payload is not copied is the one that the encoder makes, and comes out of any cut."""
    frame = Data(seq=seq, payload=bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    stream = b"".join(data_frame(seq, frame.payload))
    assert stream == encode_frame(frame)
    decoder = FrameDecoder()
    got = [found for at in range(0, len(stream), 50_001) for found in decoder.feed(stream[at : at + 50_001])]
    assert got == [frame]


def test_a_frame_in_tiny_pieces_costs_its_size() -> None:
    """A peer that sends byte by byte fills no more memory than it sends."""
    start = LENGTH.pack(MAX_FRAME_BYTES)
    decoder = FrameDecoder()
    decoder.feed(start)
    tracemalloc.start()
    try:
        for at in range(400_000):
            decoder.feed(bytes([at % 256]))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("length", [0, MAX_FRAME_BYTES + 1, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_at_once(length: int) -> None:
    """Zero-length and oversized frames end the stream with their header, before any of their bytes."""
    with pytest.raises(WireError, match=str(length)):
        FrameDecoder().feed(LENGTH.pack(length))


def test_a_frame_too_large_is_not_sent() -> None:
    """The sender meets the same limit."""
    with pytest.raises(WireError, match="larger"):
        encode_frame(Data(seq=1, payload=bytes(MAX_FRAME_BYTES)))


DEEP = b"\x91" * 100_000
HUGE_ARRAY = b"\xdd\xff\xff\xff\xff"
HUGE_MAP = b"\xdf\xff\xff\xff\xff"
HUGE_BYTES = b"\xc6\xff\xff\xff\xff"
TAG_LAST = b"\x82\xa1x" + DEEP


@pytest.mark.parametrize("types", [Order, Report])
@pytest.mark.parametrize("body", [DEEP, HUGE_ARRAY, HUGE_MAP, HUGE_BYTES, TAG_LAST, b"\xc1", b"\x81\xa1t\xc0", b"\xff"])
def test_depth_and_announced_sizes_cost_nothing(types: object, body: bytes) -> None:
    """Nesting and announced lengths are refused without allocating what they announce."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_message(msgspec.msgpack.Decoder(types), body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 5_000_000


RUN_LIST = b"\x82\xa1t\xa8run_list\xa4runs"
STATE = b"\x82\xa1t\xa9run_state\xa9traceback"


@pytest.mark.parametrize("start", [RUN_LIST, STATE])
def test_an_announced_list_costs_nothing(start: bytes) -> None:
    """A list inside a known message that announces 2**32 - 1 items is refused without room made for them."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            decode_message(msgspec.msgpack.Decoder(Report), start + HUGE_ARRAY)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 5_000_000


@given(st.binary(max_size=400))
def test_random_bytes_meet_only_wire_errors(data: bytes) -> None:
    """Whatever comes, messages decode or raise WireError."""
    for types in (Order, Report):
        with contextlib.suppress(WireError):
            decode_message(msgspec.msgpack.Decoder(types), data)
