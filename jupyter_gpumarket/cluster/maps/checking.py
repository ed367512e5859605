"""Results of items: checked before they are kept. Nothing is unpickled, and nothing a node says becomes a path."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from jupyter_gpumarket import codecs
from jupyter_gpumarket.codecs import CODECS, DEFAULT_LIMITS, Limits, verify_in_child
from jupyter_gpumarket.errors import CodecError
from jupyter_gpumarket.wire.mapping import MAX_INLINE_BYTES, ItemOutcome

# Read by our own code alone, which bounds what it makes of the bytes: so few of them need no process of their own.
PLAIN_CODECS = frozenset({"json", "npy", "safetensors"})
INLINE_LIMITS = Limits(json_bytes=MAX_INLINE_BYTES, max_bytes=MAX_INLINE_BYTES, max_items=200_000, max_tensors=2000)


def is_quick(outcome: ItemOutcome) -> bool:
    """Whether a result is checked within a moment."""
    return outcome.size == len(outcome.data) and outcome.codec in PLAIN_CODECS


def is_welcome(outcome: ItemOutcome) -> bool:
    """Whether a result will be opened at all."""
    return outcome.codec in CODECS and 0 < outcome.size <= DEFAULT_LIMITS.max_bytes


def checked_here(outcome: ItemOutcome) -> ItemOutcome:
    """A quick result as it came, or as an error when it is not what it claims to be."""
    try:
        _check_here(outcome)
    except CodecError as error:
        return refused(outcome, error)
    return outcome


def refused(outcome: ItemOutcome, error: CodecError) -> ItemOutcome:
    """The outcome of an item whose result is not taken."""
    return msgspec.structs.replace(
        outcome, status="error", data=b"", error_name="CodecError", error_value=str(error), traceback=()
    )


def _check_here(outcome: ItemOutcome) -> None:
    if outcome.codec not in CODECS:
        raise CodecError(
            f"the node sent a result as {outcome.codec[:40]!r}, which is not opened: it could run code here"
        )
    if not is_welcome(outcome):
        raise CodecError(f"a result of {outcome.size:,} bytes; at most {DEFAULT_LIMITS.max_bytes:,} come back")
    if hashlib.sha256(outcome.data).hexdigest() != outcome.sha256:
        raise CodecError("the result did not arrive as it was announced: its SHA-256 differs")
    codecs.decode(outcome.codec, outcome.data, INLINE_LIMITS)


def check_file(outcome: ItemOutcome, path: Path) -> None:
    """Any other, in its file; blocks.

    Raises:
        CodecError: the bytes are not what was announced.
        OSError: the disk.
    """
    if outcome.data:
        path.write_bytes(outcome.data)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            digest.update(piece)
            size += len(piece)
        os.fsync(file.fileno())
    if size != outcome.size or digest.hexdigest() != outcome.sha256:
        raise CodecError("the result did not arrive as it was announced: its size or SHA-256 differs")
    verify_in_child(outcome.codec, path)


@contextlib.contextmanager
def in_place(part: Path | None, result: Path | None) -> Iterator[None]:
    """Have a result's file in its place while the line that tells of it is written; back where it was if that fails."""
    if part is None or result is None:
        yield
        return
    part.replace(result)
    try:
        yield
    except OSError:
        result.replace(part)
        raise
