"""Runs a notebook in the terminal: each cell's code, its output as it comes, its cost line."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from jupyter_gpumarket.clock import in_words

BOLD, DIM, RESET = "\x1b[1m", "\x1b[2m", "\x1b[0m"
CELL_TIMEOUT_S = 600


def play(path: Path) -> int:
    """Run the notebook; save it with its outputs; 0 when every cell succeeded."""
    notebook = nbformat.read(path, as_version=4)
    started_s = time.monotonic()
    # This short-lived kernel is signed but not encrypted, as usual; ipykernel's warning of it helps nobody here.
    quiet = ["--log-level=ERROR"]
    place = {"metadata": {"path": str(path.parent)}}
    client = _Player(notebook, timeout=CELL_TIMEOUT_S, kernel_name="python3", resources=place, extra_arguments=quiet)
    try:
        client.execute()
    except CellExecutionError as error:
        print(f"\nthe notebook stopped: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    except DeadKernelError:
        print("\nthe notebook's kernel died", file=sys.stderr)
        return 1
    finally:
        client.screen.finish()
        nbformat.write(notebook, path)
    print(f"\nThe notebook ran in {in_words(time.monotonic() - started_s)}.")
    return 0


class _Player(NotebookClient):  # type: ignore[misc]
    """A NotebookClient that shows cells and messages as they come."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.screen = _Screen()
        self.on_cell_start = self._show_cell

    def _show_cell(self, cell: Any, cell_index: int) -> None:  # noqa: ARG002 - nbclient calls it by keywords
        self.screen.cell(cell)

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        self.screen.message(msg)
        return super().process_message(msg, cell, cell_index)


class _Screen:
    """What of a notebook a terminal can show: text.

    A display that is updated in place (the cost line) stays below what the cell prints; its last form is kept.
    """

    def __init__(self) -> None:
        self._live = ""
        self._at_line_start = True
        self._coloured = sys.stdout.isatty()

    def cell(self, cell: Any) -> None:
        self.finish()
        if cell.cell_type == "markdown":
            self._write(f"\n{BOLD}{cell.source.splitlines()[0].lstrip('# ')}{RESET}\n")
        elif cell.cell_type == "code":
            lines = cell.source.splitlines()
            shown = lines if len(lines) <= 8 else [*lines[:6], f"… {len(lines) - 6} more lines"]
            self._write("\n" + "".join(f"{DIM}│ {line}{RESET}\n" for line in shown))

    def message(self, msg: Any) -> None:
        kind, content = msg["header"]["msg_type"], msg["content"]
        if kind == "stream":
            self._above(content["text"])
        elif kind in {"display_data", "execute_result", "update_display_data"}:
            text = content["data"].get("text/plain", "")
            if content.get("transient", {}).get("display_id"):
                self._below(text)
            elif "image/png" in content["data"]:
                self._above("[figure: see the notebook]\n")
            elif text:
                self._above(text + "\n")

    def finish(self) -> None:
        """The cell is over: what is updated in place stays as it is now."""
        live, self._live = self._live, ""
        if live:
            self._write(("\r\x1b[K" if self._coloured else "" if self._at_line_start else "\n") + live + "\n")

    def _above(self, text: str) -> None:
        if self._live and self._coloured:
            self._write("\r\x1b[K")
        self._write(text)
        # Redrawn only under a whole line: a progress bar in the making owns the line that it is on.
        if self._at_line_start:
            self._draw()

    def _below(self, text: str) -> None:
        self._live = text
        if self._at_line_start:
            self._draw()

    def _draw(self) -> None:
        if self._live and self._coloured:
            sys.stdout.write(f"\r\x1b[K{self._live.splitlines()[-1]}")
            sys.stdout.flush()

    def _write(self, text: str) -> None:
        shown = text if self._coloured else re.sub(r"\x1b\[[0-9;]*[mK]", "", text)
        if shown:
            self._at_line_start = shown.endswith("\n")
        sys.stdout.write(shown)
        sys.stdout.flush()
