"""What a cell run wrote, as plain text for the browser: a stranger's words, cleaned here and shown as text there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jupyter_gpumarket.api import RunMessage
from jupyter_gpumarket.cleaning import Clear, Display, Failure, MessageCleaner, Shown, Stream, Truncated
from jupyter_gpumarket.cleaning.text import without_colours
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.server.door import Door

if TYPE_CHECKING:
    from jupyter_gpumarket.client import AsyncClient

MAX_LOG_CHARS = 200_000
MAX_BATCHES = 200


class RunLog(Record, frozen=True, kw_only=True):
    """GET /gpumarket/runs/{run}/log: what a run wrote so far, at most its last part. Cleaned; show it as text.

    Pictures and other rich displays stand as their text form, or are named.
    """

    run: str
    text: str
    truncated: bool


async def run_log(door: Door, run_id: str) -> RunLog:
    """What a run wrote so far.

    Raises:
        BadRequest: no such run. Unreachable: its cluster process is no more.
    """

    async def ask(broker: AsyncClient) -> list[RunMessage]:
        cost = await broker.run_cost(run_id)
        cluster = await broker.cluster(cost.run.lease_id)
        messages: list[RunMessage] = []
        try:
            for _ in range(MAX_BATCHES):
                batch = await cluster.messages(run_id, messages[-1].n if messages else 0)
                messages += batch.messages
                if not batch.messages or messages[-1].n >= batch.run.messages:
                    break
        finally:
            await cluster.aclose()
        return messages

    text = as_text(run_id, await door.call(ask))
    return RunLog(run=run_id, text=text[-MAX_LOG_CHARS:], truncated=len(text) > MAX_LOG_CHARS)


def as_text(run_id: str, messages: Iterable[RunMessage]) -> str:
    """A run's messages as one text. Nothing in it is obeyed by a terminal or a page."""
    cleaner = MessageCleaner(run_id)
    parts: list[str] = []
    for message in messages:
        _add(parts, cleaner.feed(message.msg_type, message.content, message.metadata))
    _add(parts, cleaner.finish())
    return without_colours("".join(parts))


def _add(parts: list[str], shown: Sequence[Shown]) -> None:
    for one in shown:
        if isinstance(one, Clear):
            parts.clear()
        elif isinstance(one, Stream):
            parts.append(one.text)
        elif not (isinstance(one, Display) and one.update):
            _on_a_new_line(parts, _words(one))


def _words(one: Shown) -> str:
    if isinstance(one, Failure):
        return "\n".join(one.traceback) or f"{one.name}: {one.value}"
    if isinstance(one, Truncated):
        return f"[{one.note}]"
    if isinstance(one, Display):
        text = one.data.get("text/plain")
        return text if isinstance(text, str) else f"[{', '.join(sorted(one.data)) or 'nothing to show'}]"
    return ""


def _on_a_new_line(parts: list[str], text: str) -> None:
    if parts and not parts[-1].endswith("\n"):
        parts.append("\n")
    parts.append(f"{text}\n")
