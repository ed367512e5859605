"""Where things are shown: the one module that speaks to IPython's output machinery.

In a kernel, displays can be updated in place and rich forms are sent along; in a plain terminal only text is written.
Streams go through `sys.stdout`, displays through the shell's publisher, results through its display hook: so the
messages are of the same kinds as those of a local cell, and `%%capture` works.
"""

from __future__ import annotations

import contextlib
import html
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from jupyter_gpumarket.cleaning import Clear, Display, Failure, Shown, Stream, Truncated


def as_html(text: str) -> str:
    """Our own text as HTML. Each dollar sign stands in an element of its own, or JupyterLab would set the text between
    two of them as a formula."""
    return html.escape(text).replace("$", "<span>$</span>")


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Rows to be read by people. Cells are plain text; the HTML form escapes them."""

    title: str = ""
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()

    def text(self) -> str:
        """Aligned columns."""
        lines = [self.headers, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.headers))]
        body = ["  ".join(self._padded(cell, i, widths[i]) for i, cell in enumerate(line)).rstrip() for line in lines]
        return "\n".join([*([self.title] if self.title else []), *body])

    def html(self) -> str:
        """The same as an HTML table."""
        caption = f"<caption>{as_html(self.title)}</caption>" if self.title else ""
        head = "".join(f"<th>{as_html(cell)}</th>" for cell in self.headers)
        lines = ("".join(self._cell(cell, i) for i, cell in enumerate(row)) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _padded(self, cell: str, column: int, width: int) -> str:
        return cell.rjust(width) if column in self.right else cell.ljust(width)

    def _cell(self, cell: str, column: int) -> str:
        align = ' align="right"' if column in self.right else ' align="left"'
        return f"<td{align}>{as_html(cell)}</td>"


class Stage:
    """Output of the cell that runs now."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self.is_rich = getattr(shell, "kernel", None) is not None

    def show(self, shown: Sequence[Shown], *, prefix: str = "") -> None:
        """Publish what a node sent, after cleaning. `prefix` stands before each line of text, with several nodes."""
        for one in shown:
            match one:
                case Stream():
                    self.write(_prefixed(one.text, prefix), to_stderr=one.name == "stderr")
                case Display():
                    self._display(one)
                case Clear():
                    self.clear(wait=one.wait)
                case Truncated():
                    self.write(f"\n[gpumarket] {one.note}\n", to_stderr=True)
                case Failure():
                    pass  # the end of the run tells it, once

    def write(self, text: str, *, to_stderr: bool = False) -> None:
        """Text on a stream, at once."""
        stream = sys.stderr if to_stderr else sys.stdout
        stream.write(text)
        stream.flush()

    def say(self, text: str) -> None:
        """A line of ours."""
        self.write(text + "\n")

    def table(self, table: Table) -> None:
        """A table, in the form that fits."""
        if self.is_rich:
            self.publish({"text/plain": table.text(), "text/html": table.html()})
        else:
            self.say(table.text())

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        *,
        display_id: str = "",
        update: bool = False,
    ) -> None:
        """A display; with `update`, in the place of the one with this id."""
        transient = {"display_id": display_id} if display_id else {}
        self._shell.display_pub.publish(data=data, metadata=metadata or {}, transient=transient, update=update)

    def clear(self, *, wait: bool) -> None:
        """Clear the cell's output."""
        self._shell.display_pub.clear_output(wait)

    def ask(self, question: str) -> bool | None:
        """A yes or no; None where nobody can answer (no front end with a prompt, no terminal)."""
        try:
            answer = input(question)
        except KeyboardInterrupt:
            raise
        except Exception:  # noqa: BLE001 -- kernels, nbclient and captured terminals each raise their own kind
            return None
        return answer.strip().lower() in ("y", "yes")

    def _display(self, one: Display) -> None:
        if one.is_result:
            self._result(one)
            return
        if one.update and not self.is_rich:
            return  # a terminal cannot change what it has printed
        self.publish(one.data, one.metadata, display_id=one.display_id, update=one.update)

    def _result(self, one: Display) -> None:
        """The cell's value, as the shell shows its own."""
        hook = self._shell.displayhook
        hook.start_displayhook()
        hook.write_output_prompt()
        hook.write_format_data(one.data, one.metadata)
        with contextlib.suppress(AttributeError):
            hook.finish_displayhook()


def _prefixed(text: str, prefix: str) -> str:
    if not prefix:
        return text
    lines = text.split("\n")
    return "\n".join(f"{prefix}{line}" if line else line for line in lines)
