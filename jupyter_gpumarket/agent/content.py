"""Jupyter messages of a kernel as pieces of a run's output: only the allowed kinds, in bounded sizes.

Streams of one name that follow each other are joined, so that a loop of small prints costs few messages; long ones are
split. Anything else that is too large is replaced by a `truncated` message that says what it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec

from jupyter_gpumarket.wire.messages import MAX_MESSAGE_BYTES

OUTPUT_TYPES = frozenset({"stream", "display_data", "update_display_data", "execute_result", "clear_output", "error"})
STREAM_CHARS = 256 * 1024
ERROR_CHARS = 20_000
TRACEBACK_CHARS = 60_000


class Piece(msgspec.Struct, frozen=True):
    """One output message, ready to be numbered. Content and metadata are JSON."""

    msg_type: str
    content: bytes
    metadata: bytes = b"{}"


class Collector:
    """Takes a kernel's messages in order and hands on pieces. `flush` whenever no more messages wait."""

    def __init__(self, write: Callable[[Piece], None]) -> None:
        self._write = write
        self._stream = ""
        self._texts: list[str] = []
        self._chars = 0

    def take(self, msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> None:
        """One message of the kernel."""
        if msg_type == "stream":
            self._take_stream(str(content.get("name", "stdout")), str(content.get("text", "")))
        elif msg_type in OUTPUT_TYPES:
            self.flush()
            self._write(as_piece(msg_type, content, metadata))

    def flush(self) -> None:
        """Hand on the text that was held back to be joined with what follows."""
        texts, self._texts, self._chars = self._texts, [], 0
        text = "".join(texts)
        for start in range(0, len(text), STREAM_CHARS):
            content = {"name": self._stream, "text": text[start : start + STREAM_CHARS]}
            self._write(Piece("stream", as_json(content)))

    def _take_stream(self, name: str, text: str) -> None:
        if name != self._stream:
            self.flush()
            self._stream = name
        self._texts.append(text)
        self._chars += len(text)
        if self._chars >= STREAM_CHARS:
            self.flush()


def as_piece(msg_type: str, content: dict[str, Any], metadata: dict[str, Any]) -> Piece:
    """A message as a piece, replaced by `truncated` where it is too large."""
    if msg_type == "error":
        content = shortened_error(content)
    data, facts = as_json(content), as_json(metadata)
    if len(data) + len(facts) <= MAX_MESSAGE_BYTES:
        return Piece(msg_type, data, facts)
    text = f"an output of {len(data)} bytes ({msg_type}) is larger than the {MAX_MESSAGE_BYTES} that can be shown"
    return Piece("truncated", as_json({"text": text, "msg_type": msg_type, "size": len(data)}))


def shortened_error(content: dict[str, Any]) -> dict[str, Any]:
    """An error with its texts cut to what a person reads: the end of a traceback matters most."""
    lines: list[str] = []
    room = TRACEBACK_CHARS
    for line in reversed([str(line)[-ERROR_CHARS:] for line in content.get("traceback", ())]):
        room -= len(line) + 1
        if room < 0:
            lines.append("… (the beginning of the traceback is left out)")
            break
        lines.append(line)
    lines.reverse()
    return {
        "ename": str(content.get("ename", ""))[:200],
        "evalue": str(content.get("evalue", ""))[:ERROR_CHARS],
        "traceback": lines,
    }


def as_json(value: Any) -> bytes:
    """JSON that every reader takes: no NaN, no lone surrogates."""
    try:
        return msgspec.json.encode(value)
    except (UnicodeError, ValueError, TypeError):
        return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
