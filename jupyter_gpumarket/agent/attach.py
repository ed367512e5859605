"""Bridges standard input and output to the agent's socket: what the link runs in its SSH session channel.

It knows nothing of the protocol and ends when either side ends. Standard library only, so that it starts quickly. It
copies, and does not `splice`: the kernel would hold the pipe's lock while it waits for the agent, and the SSH server
that looks into that pipe would stand still with all its channels.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import threading
import time
from pathlib import Path

CHUNK_BYTES = 256 * 1024
PIPE_BYTES = 1024 * 1024
F_SETPIPE_SZ = 1031
CONNECT_PATIENCE_S = 10.0


def attach(folder: Path, patience_s: float = CONNECT_PATIENCE_S) -> int:
    """Bridge until one side ends; the exit code."""
    connection = connect(folder, patience_s)
    if connection is None:
        sys.stderr.write(f"no agent answers in {folder}: start it with 'serve'\n")
        return 3
    for pipe in (0, 1):
        # Larger pieces at a time; where it is no pipe, or no larger ones are allowed, it works as well.
        with contextlib.suppress(OSError):
            fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_BYTES)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIPE_BYTES)
    upward = threading.Thread(target=copy_to_agent, args=(connection,), daemon=True)
    upward.start()
    try:
        while data := connection.recv(CHUNK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(1, view) :]
    except OSError:
        pass
    return 0


def connect(folder: Path, patience_s: float) -> socket.socket | None:
    """The agent's socket; waits a little for an agent that is just starting."""
    # By relative name: a socket's whole path may have only about 100 characters.
    os.chdir(folder)
    until = time.monotonic() + patience_s
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect("agent.sock")
        except OSError:
            connection.close()
            if time.monotonic() > until:
                return None
            time.sleep(0.1)
        else:
            return connection


def copy_to_agent(connection: socket.socket) -> None:
    """Standard input to the agent; at its end the agent is told, and may still speak."""
    try:
        while data := os.read(0, CHUNK_BYTES):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
