"""A session's kernel: ipykernel, with output that cannot be lost and a way for inputs and outputs.

Plain ipykernel drops output when its reader is slow (a PUB socket at its limit) and buffers what is printed without
bound. Here the socket waits instead, and `print` waits with it, so that a cell that prints 100 MB runs at the speed of
the node's disk, in bounded memory.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread, OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp

from jupyter_gpumarket.agent import driver, sync, variables

# How many messages wait in the kernel's socket, and again in the agent's.
PENDING_MESSAGES = 32
UNFLUSHED_CHARS = 256 * 1024
FLUSH_TIMEOUT_S = 3600.0


class PatientStream(OutStream):
    """stdout and stderr that wait for their reader."""

    flush_timeout = FLUSH_TIMEOUT_S
    unflushed = 0

    def write(self, string: str) -> int | None:
        """Write in parts of bounded size, waiting after each until it is on its way."""
        if len(string) > UNFLUSHED_CHARS:
            for start in range(0, len(string), UNFLUSHED_CHARS):
                # Not `self.write`: IPython puts a wrapper there while a cell runs.
                PatientStream.write(self, string[start : start + UNFLUSHED_CHARS])
            return len(string)
        written: int | None = super().write(string)
        self.unflushed += len(string)
        if self.unflushed >= UNFLUSHED_CHARS:
            self.unflushed = 0
            self.flush()
        return written


class Forgetful(defaultdict[int, list[Any]]):
    """Takes what is filed under any number, and keeps nothing."""

    def __missing__(self, key: int) -> list[Any]:
        return []


class NodeKernel(IPythonKernel):
    """An IPython kernel that also takes inputs and gives outputs, outside of the user's namespace."""

    msg_types = [*IPythonKernel.msg_types, "gpumarket_inputs", "gpumarket_outputs"]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # IPython 9 files all that cells print and show, for ever; here the agent's log has it.
        if hasattr(self.shell.history_manager, "outputs"):
            self.shell.history_manager.outputs = Forgetful(list)
        self._refresher = sync.install(self.shell)
        driver.install(self.shell)

    async def gpumarket_inputs(self, stream: Any, ident: Any, parent: Any) -> None:
        """Set the variables that the message names."""
        if self._refresher is not None:
            self._refresher.look(self.shell.user_ns)  # what is unpickled now may be of a module that has changed
        reply = variables.set_inputs(self.shell, parent["content"]["inputs"])
        self.session.send(stream, "gpumarket_inputs_reply", reply, parent, ident=ident)

    async def gpumarket_outputs(self, stream: Any, ident: Any, parent: Any) -> None:
        """Encode the variables that the message names."""
        reply = variables.encode_outputs(self.shell, parent["content"]["outputs"])
        self.session.send(stream, "gpumarket_outputs_reply", reply, parent, ident=ident)


class NodeKernelApp(IPKernelApp):
    """The kernel's application, with an output socket that waits instead of dropping."""

    def init_iopub(self, context: Any) -> None:
        """As the base class does it, but for the socket's options: both count only when set before the bind."""
        self.iopub_socket: Any = context.socket(zmq.XPUB)
        self.iopub_socket.linger = 1000
        self.iopub_socket.sndhwm = PENDING_MESSAGES
        self.iopub_socket.setsockopt(zmq.XPUB_NODROP, 1)
        if hasattr(self, "_apply_curve_server_options"):
            self._apply_curve_server_options(self.iopub_socket)
        self.iopub_port: int = self._bind_socket(self.iopub_socket, self.iopub_port)
        self.configure_tornado_logger()
        self.iopub_thread = IOPubThread(self.iopub_socket, pipe=True, session=self.session)
        self.iopub_thread.start()
        self.iopub_socket = self.iopub_thread.background_socket

    def init_io(self) -> None:
        """Make the streams patient once the base class has put them in place."""
        super().init_io()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, OutStream):
                stream.__class__ = PatientStream
