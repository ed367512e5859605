"""What a cell run wrote, as text."""

from __future__ import annotations

from typing import Any

from jupyter_gpumarket.api import RunMessage
from jupyter_gpumarket.server.runs import as_text


def message(n: int, msg_type: str, **content: Any) -> RunMessage:
    return RunMessage(n=n, at_ms=n, msg_type=msg_type, content=content)


def test_output_is_one_text_in_order() -> None:
    """Streams run on, displays stand on lines of their own by their text form, an error with its traceback."""
    text = as_text(
        "run1",
        [
            message(1, "stream", name="stdout", text="a"),
            message(2, "stream", name="stdout", text="b"),
            message(3, "display_data", data={"text/plain": "<Figure>", "image/png": "AAAA"}, metadata={}),
            message(4, "error", ename="ValueError", evalue="no", traceback=["Traceback", "ValueError: no"]),
        ],
    )

    assert text.startswith("ab\n<Figure>\n")
    assert text.endswith("ValueError: no\n")


def test_nothing_in_it_is_obeyed() -> None:
    """Escape sequences, colours and direction marks of a node are gone or shown as symbols; cleared output is gone."""
    text = as_text(
        "run1",
        [
            message(1, "stream", name="stdout", text="old"),
            message(2, "clear_output", wait=False),
            message(3, "stream", name="stdout", text="\x1b[31mred\x1b[0m \x1b]52;c;AAAA\x07 \u202eabc"),
        ],
    )

    assert "old" not in text
    assert "red" in text
    assert not set(text) & {"\x1b", "\x07", "\u202e"}
