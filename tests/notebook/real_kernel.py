"""A real ipykernel driven as a front end does, in an environment that rents from a pool on this machine."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import msgspec
from jupyter_client.manager import KernelManager

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 90.0


class Executed(msgspec.Struct):
    """What one cell led to: the messages as they came, and the reply's content."""

    messages: list[dict[str, Any]] = []
    reply: dict[str, Any] = {}

    @property
    def stdout(self) -> str:
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        return self._stream("stderr")

    @property
    def status(self) -> str:
        return str(self.reply["status"])

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message["content"] for message in self.messages if message["msg_type"] == kind]

    @property
    def cost_lines(self) -> list[str]:
        """The states of the line under the cell."""
        return [
            content["data"]["text/plain"]
            for kind in ("display_data", "update_display_data")
            for content in self.of(kind)
            if str(content.get("transient", {}).get("display_id", "")).startswith("gpum-cost")
        ]

    @property
    def run_cost(self) -> str:
        """The cell's own amount in the last state of the line."""
        found = re.search(r" s · (\$[0-9.]+) · ", self.cost_lines[-1])
        assert found, self.cost_lines[-1]
        return found[1]

    def _stream(self, name: str) -> str:
        return "".join(content["text"] for content in self.of("stream") if content["name"] == name)


class RealKernel:
    """Start, run cells, interrupt, restart, stop."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self._environment = environment
        self._folder = folder
        self.manager = KernelManager(kernel_name="python3")
        self.client: Any = None

    def start(self) -> RealKernel:
        self.manager.start_kernel(env=self._environment, cwd=str(self._folder))
        self._connect()
        return self

    def restart(self) -> None:
        """As the menu does: an interrupt, and the wish that it ends; another process takes its place."""
        self.client.stop_channels()
        self.manager.restart_kernel()
        self._connect()

    def stop(self) -> None:
        if self.client is not None:
            self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def submit(self, code: str) -> str:
        sent: str = self.client.execute(code, allow_stdin=False)
        return sent

    def until(self, message_id: str, holds: Any, executed: Executed | None = None) -> Executed:
        """Collect messages until `holds(executed)`."""
        executed = executed or Executed()
        deadline = time.monotonic() + PATIENCE_S
        while not holds(executed):
            assert time.monotonic() < deadline, f"not in time; so far: {executed}"
            try:
                message = self.client.get_iopub_msg(timeout=0.5)
            except Exception:
                continue
            if message["parent_header"].get("msg_id") == message_id:
                executed.messages.append(message)
        return executed

    def finish(self, message_id: str, executed: Executed | None = None) -> Executed:
        """Collect to the end of the cell, and its reply."""

        def is_idle(so_far: Executed) -> bool:
            return any(content["execution_state"] == "idle" for content in so_far.of("status"))

        executed = self.until(message_id, is_idle, executed)
        while True:
            reply = self.client.get_shell_msg(timeout=PATIENCE_S)
            if reply["parent_header"].get("msg_id") == message_id:
                executed.reply = reply["content"]
                return executed

    def run(self, code: str) -> Executed:
        return self.finish(self.submit(code))

    def must_run(self, code: str) -> Executed:
        done = self.run(code)
        assert done.status == "ok", done
        return done

    def _connect(self) -> None:
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=PATIENCE_S)
