"""A run's messages as they may be published: one `MessageCleaner` per run, fed in order.

It knows the display ids of this run only: a node cannot update the output of another cell. It bounds what a cell shows;
what is beyond goes on to the run's file on disk, and the reader is told once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from jupyter_gpumarket.cleaning.bundles import clean_bundle
from jupyter_gpumarket.cleaning.text import StreamText, clean_text, collapse_overwritten, one_line

MAX_DISPLAYS = 2_000
MAX_DISPLAY_IDS = 1_000
MAX_SHOWN_BYTES = 20_000_000
MAX_UPDATES = 100_000
MAX_TRACEBACK_LINES = 500
MAX_TRACEBACK_CHARS = 100_000


class Shown(msgspec.Struct, frozen=True, kw_only=True):
    """Base of what may be published."""


class Stream(Shown, frozen=True, kw_only=True):
    """Text for stdout or stderr."""

    name: str
    text: str


class Display(Shown, frozen=True, kw_only=True):
    """A display, an update of one (`update`), or the cell's value (`is_result`)."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str = ""
    update: bool = False
    is_result: bool = False


class Clear(Shown, frozen=True, kw_only=True):
    """Clear the cell's output; with `wait`, when the next output comes."""

    wait: bool


class Failure(Shown, frozen=True, kw_only=True):
    """The cell failed on the node."""

    name: str
    value: str
    traceback: tuple[str, ...]


class Truncated(Shown, frozen=True, kw_only=True):
    """From here on output is only on disk."""

    note: str


class MessageCleaner:
    """Cleans one run's messages. `trusted` nodes' displays pass unchanged; ids are rewritten all the same."""

    def __init__(self, run_id: str, *, trusted: bool = False) -> None:
        self._run_id = run_id
        self._trusted = trusted
        self._ids: dict[str, str] = {}
        self._streams = {"stdout": StreamText(), "stderr": StreamText()}
        self._displays = 0
        self._updates = 0
        self._shown_bytes = 0
        self._full = False
        self.left_out = 0

    def feed(self, msg_type: str, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Shown]:
        """What to publish for one message; nothing for a kind that is not on the list."""
        if self._full and msg_type not in ("error", "truncated"):
            self.left_out += 1
            return []
        handler = {
            "stream": self._stream,
            "display_data": self._display,
            "update_display_data": self._update,
            "execute_result": self._result,
            "clear_output": self._clear,
            "error": self._error,
            "truncated": self._truncated,
        }.get(msg_type)
        if handler is None:
            self.left_out += 1
            return []
        shown = handler(content, metadata)
        return self._bounded(shown)

    def finish(self) -> list[Shown]:
        """What was held back until the end of the run."""
        rests = [(name, stream.finish()) for name, stream in self._streams.items()]
        return [Stream(name=name, text=rest) for name, rest in rests if rest]

    def _stream(self, content: Mapping[str, Any], _metadata: Mapping[str, Any]) -> list[Shown]:
        name = "stderr" if content.get("name") == "stderr" else "stdout"
        text = content.get("text")
        if not isinstance(text, str):
            return []
        cleaned = self._streams[name].feed(text)
        return [Stream(name=name, text=cleaned)] if cleaned else []

    def _display(self, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Shown]:
        del metadata
        self._displays += 1
        if self._displays > MAX_DISPLAYS:
            self.left_out += 1
            if self._displays == MAX_DISPLAYS + 1:
                return [Truncated(note=f"more than {MAX_DISPLAYS:,} displays in one cell; further ones are not shown")]
            return []
        display_id = _display_id(content)
        return [self._bundle(content, display_id=self._own_id(display_id) if display_id else "")]

    def _update(self, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Shown]:
        del metadata
        self._updates += 1
        own = self._ids.get(_display_id(content))
        if own is None or self._updates > MAX_UPDATES:
            self.left_out += 1
            return []
        return [self._bundle(content, display_id=own, update=True)]

    def _result(self, content: Mapping[str, Any], metadata: Mapping[str, Any]) -> list[Shown]:
        del metadata
        return [self._bundle(content, is_result=True)]

    def _clear(self, content: Mapping[str, Any], _metadata: Mapping[str, Any]) -> list[Shown]:
        # What is cleared makes room again for what comes after it.
        self._displays = 0
        return [Clear(wait=content.get("wait") is True)]

    def _error(self, content: Mapping[str, Any], _metadata: Mapping[str, Any]) -> list[Shown]:
        return [clean_failure(content.get("ename"), content.get("evalue"), content.get("traceback"))]

    def _truncated(self, content: Mapping[str, Any], _metadata: Mapping[str, Any]) -> list[Shown]:
        note = content.get("text") or "further output is not shown"
        return [Truncated(note=one_line(str(note), 500))]

    def _bundle(
        self, content: Mapping[str, Any], *, display_id: str = "", update: bool = False, is_result: bool = False
    ) -> Display:
        data, metadata = _mapping(content.get("data")), _mapping(content.get("metadata"))
        if not self._trusted:
            bundle = clean_bundle(data, metadata)
            data = bundle.data
            metadata = {**bundle.metadata, "gpumarket": {"untrusted": True, "run_id": self._run_id}}
        return Display(data=data, metadata=metadata, display_id=display_id, update=update, is_result=is_result)

    def _own_id(self, display_id: str) -> str:
        if display_id not in self._ids:
            if len(self._ids) >= MAX_DISPLAY_IDS:
                return ""
            digest = hashlib.sha256(display_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
            self._ids[display_id] = f"gpum-{self._run_id}-{digest}"
        return self._ids[display_id]

    def _bounded(self, shown: list[Shown]) -> list[Shown]:
        """Count what is shown; once it is too much, say so and stop."""
        self._shown_bytes += sum(_size(one) for one in shown)
        if self._shown_bytes <= MAX_SHOWN_BYTES or self._full:
            return shown
        self._full = True
        note = f"more than {MAX_SHOWN_BYTES // 1_000_000} MB of output in one cell; the rest is not shown"
        return [*[one for one in shown if isinstance(one, Failure)], Truncated(note=note)]


def clean_failure(name: object, value: object, traceback: object) -> Failure:
    """A node's error, cleaned and bounded."""
    lines = [line for line in traceback if isinstance(line, str)] if isinstance(traceback, list | tuple) else []
    kept: list[str] = []
    size = 0
    for line in lines[-MAX_TRACEBACK_LINES:]:
        size += len(line)
        if size > MAX_TRACEBACK_CHARS:
            kept.append("[shortened]")
            break
        kept.append(clean_text(line))
    return Failure(
        name=one_line(str(name or "Error"), 100), value=clean_text(str(value or "")[:10_000]), traceback=tuple(kept)
    )


def coalesce(shown: Iterable[Shown]) -> list[Shown]:
    """One frame out of many messages: streams joined, states that the next one replaces left out."""
    frame: list[Shown] = []
    places: dict[str, int] = {}
    for one in shown:
        if isinstance(one, Clear) and not one.wait:
            # Everything before is gone from the cell at once; updates of what is gone have nothing to update.
            frame, places = [one], {}
        elif isinstance(one, Clear) and frame and frame[-1] == one:
            continue
        elif isinstance(one, Stream) and frame and isinstance(frame[-1], Stream) and frame[-1].name == one.name:
            frame[-1] = Stream(name=one.name, text=frame[-1].text + one.text)
        elif isinstance(one, Display) and one.update and one.display_id in places:
            place = places[one.display_id]
            earlier = frame[place]
            assert isinstance(earlier, Display)
            frame[place] = msgspec.structs.replace(earlier, data=one.data, metadata=one.metadata)
        else:
            if isinstance(one, Display) and one.display_id:
                # A display may be one of several with this id, earlier ones on the page already: only an update
                # reaches them all, so an update may stand in for the one before it, and never for a display.
                places.pop(one.display_id, None)
                if one.update:
                    places[one.display_id] = len(frame)
            frame.append(one)
    return [
        msgspec.structs.replace(one, text=collapse_overwritten(one.text)) if isinstance(one, Stream) else one
        for one in frame
    ]


def _display_id(content: Mapping[str, Any]) -> str:
    found = _mapping(content.get("transient")).get("display_id")
    return found if isinstance(found, str) and 0 < len(found) <= 1_000 else ""


def _mapping(value: object) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _size(one: Shown) -> int:
    match one:
        case Stream():
            return len(one.text)
        case Display():
            return sum(
                len(value) if isinstance(value, str) else len(msgspec.json.encode(value)) for value in one.data.values()
            )
        case _:
            return 100
