"""Runs a notebook in the terminal: each cell's code, its output as it comes, its cost line."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from jupyter_gpumarket.clock import in_words

BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
CELL_TIMEOUT_S = 600


def play(path: Path) -> int:
    """Run the notebook; save it with its outputs; 0 when every cell succeeded."""
    notebook = nbformat.read(path, as_version=4)
    started_s = time.monotonic()
    client = _Player(
        notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"\nthe notebook stopped: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    finally:
        nbformat.write(notebook, path)
    print(f"\n{BOLD}The notebook ran in {in_words(time.monotonic() - started_s)}.{RESET}")
    return 0


class _Player(NotebookClient):  # type: ignore[misc]
    """A NotebookClient that shows cells and messages as they come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._screen = _Screen()
        self.on_cell_start = self._show_cell

    def _show_cell(self, cell: Any, cell_index: int) -> None:  # noqa: ARG002 - nbclient calls it by keywords
        self._screen.cell(cell)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        self._screen.message(msg)
        return super().process_message(msg, cell, cell_index)


class _Screen:
    """What of a notebook a terminal can show: text. A line that is updated in place is shown when it has settled."""

    def __init__(self) -> None:
        self._live: str | None = None
        self._coloured = sys.stdout.isatty()

    def cell(self, cell: Any) -> None:
        self._settle()
        if cell.cell_type == "markdown":
            self._write(f"\n{BOLD}{cell.source.splitlines()[0].lstrip('# ')}{RESET}\n")
        elif cell.cell_type == "code":
            lines = cell.source.splitlines()
            shown = lines if len(lines) <= 8 else [*lines[:6], f"… {len(lines) - 6} more lines"]
            self._write("\n" + "".join(f"{DIM}│ {line}{RESET}\n" for line in shown))

    def message(self, msg: Any) -> None:
        kind, content = msg["header"]["msg_type"], msg["content"]
        if kind == "stream":
            self._settle()
            self._write(content["text"])
        elif kind in {"display_data", "execute_result"}:
            self._settle()
            self._show(content)
        elif kind == "update_display_data":
            self._show(content)

    def _show(self, content: Any) -> None:
        data = content["data"]
        text = data.get("text/plain", "")
        if content.get("transient", {}).get("display_id"):
            self._live = text
            if self._coloured:
                self._write(f"\r\x1b[K{text.splitlines()[-1] if text else ''}")
        elif "image/png" in data:
            self._write("[figure: see the notebook]\n")
        elif text:
            self._write(text + "\n")

    def _settle(self) -> None:
        if self._live is not None:
            self._write(("\r\x1b[K" if self._coloured else "") + self._live + "\n")
            self._live = None

    def _write(self, text: str) -> None:
        sys.stdout.write(text if self._coloured else re.sub(r"\x1b\[[0-9;]*[mK]", "", text))
        sys.stdout.flush()
