"""How errors look in a notebook: what happened and what to do, without the door's own stack."""

from __future__ import annotations

from collections.abc import Callable

from jupyter_gpumarket.api import RunView
from jupyter_gpumarket.cleaning.messages import clean_failure
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.errors import GpuMarketError, NodeError, RemoteError
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.notebook.sync_hint import hint


class RemoteInterrupt(KeyboardInterrupt):
    """Ctrl-C reached the remote cell: raised again here so that "Run all" stops."""

    def __init__(self, message: str, traceback: list[str] | None = None) -> None:
        super().__init__(message)
        self.traceback = traceback or []

    def _render_traceback_(self) -> list[str]:
        return [*self.traceback, f"KeyboardInterrupt: {self}"]


def shown_short(error: BaseException) -> BaseException:
    """The error, so marked that IPython shows one line instead of our own stack."""
    if not hasattr(error, "_render_traceback_"):
        show_as(error, lambda: [f"{type(error).__name__}: {error}"])
    return error


def remote_error(name: str, value: str, traceback: list[str], node: str) -> RemoteError:
    """A cell's failure on a node: shown as the remote traceback, once."""
    error = RemoteError(name, value, traceback)
    # A time-out arrives as the traceback of an interrupt: its own name is said after it.
    last = [] if name in "".join(traceback[-1:]) else [f"{name}: {value}"]
    if told := hint([value, *traceback]):
        error.add_note(told)
        last.append(told)
    show_as(error, lambda: [f"on {node}:", *traceback, *last])
    return error


def show_as(error: BaseException, render: Callable[[], list[str]]) -> None:
    """Have IPython show the error by these lines."""
    # IPython asks an exception for this method before it prints a traceback of its own.
    error.__dict__["_render_traceback_"] = render


def error_of(view: RunView, node: str) -> BaseException | None:
    """What a run's end raises in the notebook; None when it went well."""
    failure = clean_failure(view.error_name, view.error_value, view.traceback)
    traceback = list(failure.traceback)
    reason = one_line(view.reason, 500)
    if view.status == RunStatus.OK:
        return None
    if view.status == RunStatus.ERROR:
        name = failure.name if view.error_name else "RemoteError"
        return remote_error(name, failure.value or reason or "the cell failed", traceback, node)
    if view.status == RunStatus.INTERRUPTED:
        return RemoteInterrupt(reason or "the cell was interrupted on the node", traceback)
    if view.status == RunStatus.TIMED_OUT:
        return remote_error("TimeoutError", reason or "the cell took longer than its --timeout", traceback, node)
    if view.status == RunStatus.LOST:
        return NodeError(
            f"{node} is gone, and what the cell had not brought back with it ({reason or 'no reason was told'}); "
            "run the cell again: it rents another node, and `%gpu cost` shows what this one cost"
        )
    return GpuMarketError(f"the run on {node} is still {view.status.value}")
