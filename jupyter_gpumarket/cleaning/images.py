"""Pictures from a node: checked by their own bytes, not by what they are called, and rebuilt from what draws.

A small file can announce a picture of 60,000 × 60,000 pixels (the page then allocates it), carry 100,000 frames, hide
text or another file behind its end, or simply be something else. Only headers and block lengths are read here; nothing
is decompressed.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable
from typing import NamedTuple

MAX_IMAGE_BYTES = 32 * 1024 * 1024
MAX_SIDE_PIXELS = 16_384
MAX_PIXELS = 40_000_000
MAX_FRAMES = 1_000
MAX_ALL_FRAMES_PIXELS = 400_000_000
MAX_SCANS = 200


class Unfit(Exception):
    """Why something is not shown, in a few words."""


class Picture(NamedTuple):
    """A picture that may be shown: its bytes as rebuilt, and its size in pixels."""

    data: bytes
    width: int
    height: int
    frames: int = 1


def clean_image(mime: str, text: str) -> str:
    """Base64 of the rebuilt picture.

    Raises:
        Unfit: it is not strict base64, not a picture of this type, damaged, or too large to show.
    """
    return base64.b64encode(check(mime, decode(text)).data).decode("ascii")


def decode(text: str) -> bytes:
    """Strict base64; only line ends may stand between its characters.

    Raises:
        Unfit: anything else stands there, or it is too large.
    """
    if len(text) > MAX_IMAGE_BYTES * 4 // 3 + 65536:
        raise Unfit(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise Unfit("not base64") from None


def check(mime: str, data: bytes) -> Picture:
    """The picture in these bytes.

    Raises:
        Unfit: it is no picture of this type, damaged, or too large to show.
    """
    if len(data) > MAX_IMAGE_BYTES:
        raise Unfit(f"larger than {MAX_IMAGE_BYTES // 2**20} MiB")
    try:
        picture = CHECKS[mime](data)
    except IndexError:
        raise Unfit("damaged: it ends too early") from None
    if not (0 < picture.width <= MAX_SIDE_PIXELS and 0 < picture.height <= MAX_SIDE_PIXELS):
        raise Unfit(f"{picture.width} × {picture.height} pixels")
    if picture.width * picture.height > MAX_PIXELS:
        raise Unfit(f"{picture.width} × {picture.height} pixels")
    if picture.frames > MAX_FRAMES or picture.frames * picture.width * picture.height > MAX_ALL_FRAMES_PIXELS:
        raise Unfit(f"{picture.frames} frames of {picture.width} × {picture.height} pixels")
    return picture


# ── PNG ──────────────────────────────────────────────────────────────────────────────────────────────────────────────

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# What draws, and how colours are meant. Text, profiles and private chunks may be compressed bombs or other files.
PNG_CHUNKS = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB pHYs sBIT bKGD acTL fcTL fdAT".split())
MAX_PNG_CHUNKS = 100_000


def _png(data: bytes) -> Picture:
    if not data.startswith(PNG_MAGIC):
        raise Unfit("not a PNG")
    kept = [PNG_MAGIC]
    at, count, frames, size = 8, 0, 1, (0, 0)
    kind = b""
    while kind != b"IEND":
        kind, body, end = _png_chunk(data, at)
        count += 1
        if (count == 1) != (kind == b"IHDR") or count > MAX_PNG_CHUNKS:
            raise Unfit("damaged: its parts are out of order or too many")
        if kind == b"IHDR":
            if len(body) != 13:
                raise Unfit("damaged header")
            size = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
        if kind == b"acTL":
            frames = max(frames, int.from_bytes(body[:4]))
        if kind in PNG_CHUNKS:
            kept.append(data[at:end])
        at = end
    return Picture(b"".join(kept), *size, frames)


def _png_chunk(data: bytes, at: int) -> tuple[bytes, bytes, int]:
    length = int.from_bytes(data[at : at + 4])
    kind = data[at + 4 : at + 8]
    end = at + 12 + length
    if end > len(data):
        raise Unfit("damaged: it ends too early")
    if int.from_bytes(data[end - 4 : end]) != zlib.crc32(memoryview(data)[at + 4 : end - 4]):
        raise Unfit("damaged: a checksum is wrong")
    return kind, data[at + 8 : end - 4], end


# ── JPEG ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

# Start-of-frame markers: all but DHT (C4), JPG (C8) and DAC (CC) in C0..CF.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_BARE = frozenset([0x01, *range(0xD0, 0xD8)])
# Comments and application data (EXIF, profiles, thumbnails) go, besides JFIF and Adobe's colour mark.
JPEG_FILL = -1
JPEG_LEFT_OUT = (frozenset(range(0xE0, 0xF0)) - {0xE0, 0xEE}) | {0xFE, JPEG_FILL}


def _jpeg(data: bytes) -> Picture:
    if not data.startswith(b"\xff\xd8\xff"):
        raise Unfit("not a JPEG")
    kept = [b"\xff\xd8"]
    at, scans, size = 2, 0, (0, 0)
    while True:
        marker, end = _jpeg_segment(data, at)
        if marker == 0xD9:
            return Picture(b"".join([*kept, b"\xff\xd9"]), *size)
        if marker in JPEG_FRAMES:
            if size != (0, 0):
                raise Unfit("damaged: two frame headers")
            size = int.from_bytes(data[at + 7 : at + 9]), int.from_bytes(data[at + 5 : at + 7])
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise Unfit(f"more than {MAX_SCANS} scans")
            end = _end_of_scan(data, end)
        if marker not in JPEG_LEFT_OUT:
            kept.append(data[at:end])
        at = end


def _jpeg_segment(data: bytes, at: int) -> tuple[int, int]:
    """A segment's marker, and where it ends. A fill byte is a segment of its own, which is left out."""
    if data[at] != 0xFF:
        raise Unfit("damaged: a marker is missing")
    marker = data[at + 1]
    if marker == 0xFF:
        return JPEG_FILL, at + 1
    if marker in JPEG_BARE or marker == 0xD9:
        return marker, at + 2
    length = int.from_bytes(data[at + 2 : at + 4])
    if length < 2 or at + 2 + length > len(data):
        raise Unfit("damaged: it ends too early")
    return marker, at + 2 + length


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker after a scan's data stands; FF 00 and restart markers belong to the data."""
    while True:
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise Unfit("damaged: it ends too early")
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2


# ── GIF ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _gif(data: bytes) -> Picture:
    if data[:6] not in (b"GIF87a", b"GIF89a"):
        raise Unfit("not a GIF")
    width, height = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    at = 13 + _colours(data[10])
    kept = [data[:at]]
    frames = 0
    while data[at] != 0x3B:
        start = at
        keep = True
        if data[at] == 0x2C:
            frames += 1
            if frames > MAX_FRAMES:
                raise Unfit(f"more than {MAX_FRAMES} frames")
            frame_side = max(
                int.from_bytes(data[at + 5 : at + 7], "little"), int.from_bytes(data[at + 7 : at + 9], "little")
            )
            if frame_side > MAX_SIDE_PIXELS:
                raise Unfit("a frame larger than the picture")
            at = _end_of_blocks(data, at + 10 + _colours(data[at + 9]) + 1)
        elif data[at] == 0x21:
            keep = data[at + 1] == 0xF9 or (data[at + 1] == 0xFF and data[at + 3 : at + 14] == b"NETSCAPE2.0")
            at = _end_of_blocks(data, at + 2)
        else:
            raise Unfit("damaged: an unknown block")
        if keep:
            kept.append(data[start:at])
    return Picture(b"".join([*kept, b"\x3b"]), width, height, max(1, frames))


def _colours(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _end_of_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


CHECKS: dict[str, Callable[[bytes], Picture]] = {"image/png": _png, "image/jpeg": _jpeg, "image/gif": _gif}
