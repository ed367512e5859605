"""A real IPython shell in this process, with the magics on it and a fake broker under them."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from jupyter_gpumarket.config import Settings
from jupyter_gpumarket.notebook.extension import load
from jupyter_gpumarket.notebook.kernel import Notebook
from tests.notebook.fakes import FakeClient, FakeClock


class Publisher(DisplayPublisher):  # type: ignore[misc]
    """Keeps what is published, as a front end would get it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.published: list[dict[str, Any]] = []

    def publish(self, data: Any, metadata: Any = None, source: Any = None, **more: Any) -> None:
        self.published.append({"data": data, "metadata": metadata, **more})

    def clear_output(self, wait: bool = False) -> None:
        self.published.append({"clear": wait})


class Room:
    """A shell, its notebook, and the broker it speaks to."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        config = Config({"HistoryManager": {"enabled": False}})
        self.shell = InteractiveShell(config=config, display_pub_class=Publisher)
        self.shell.kernel = object()
        self.clock = FakeClock()
        self.client = FakeClient(self.clock)
        self.settings = Settings(ask=False)
        self.environment = "lab/one.ipynb"
        self._capsys = capsys
        self.out = ""
        self.err = ""
        self.notebook = self.another_kernel()

    def another_kernel(self) -> Notebook:
        """Load the extension as a fresh kernel would: nothing is remembered."""
        self.notebook = Notebook(
            self.shell.user_ns,
            connect=lambda: self.client,  # type: ignore[arg-type, return-value]
            settings=lambda: self.settings,
            clock=self.clock,
            pause=self.clock.pause,
        )
        load(self.shell, self.notebook)
        return self.notebook

    def run(self, cell: str) -> Any:
        """Execute a cell; what it raised, or None. Output is added to `out` and `err`."""
        result = self.shell.run_cell(cell, store_history=True)
        captured = self._capsys.readouterr()
        self.out += captured.out
        self.err += captured.err
        return result.error_in_exec or result.error_before_exec

    def must_run(self, cell: str) -> None:
        error = self.run(cell)
        assert error is None, repr(error) + self.out + self.err

    @property
    def published(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.shell.display_pub.published
        return found

    @property
    def lines(self) -> list[str]:
        """The cost line's states, in order."""
        return [
            one["data"]["text/plain"]
            for one in self.published
            if "data" in one and str((one.get("transient") or {}).get("display_id", "")).startswith("gpum-cost")
        ]


@pytest.fixture
def room(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setenv("JUPYTER_GPUMARKET_NOTEBOOK", "lab/one.ipynb")
    yield Room(capsys)
    # A shell takes these over and gives them back only when a process ends.
    builtins.__dict__.pop("get_ipython", None)
    sys.displayhook = sys.__displayhook__
