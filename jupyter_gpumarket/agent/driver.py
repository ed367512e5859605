"""In the head's kernels: `client`, a `distributed.Client` of the cluster's scheduler, is there for each cell.

The agent writes a file while a scheduler runs on this node. Before a cell the kernel looks at it, so a cluster that was
started, replaced or ended meanwhile counts at once, also in sessions that were there before.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.agent.processes import FOLDER_VARIABLE

FILE = "client.json"
NAME = "client"
CONNECT_TIMEOUT_S = 30
CLOSE_TIMEOUT_S = 2


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Where the scheduler listens, and with which files it lets a client in (all empty: without TLS)."""

    address: str
    ca: str = ""
    cert: str = ""
    key: str = ""


class Driver:
    """Binds `client` in one kernel's namespace."""

    def __init__(self, namespace: dict[str, Any], file: Path) -> None:
        self._namespace = namespace
        self._file = file
        self._access: Access | None = None
        self._client: Any = None

    def look(self, *_: Any) -> None:
        """Before each cell: connect to another scheduler than before, let go of one that is no more."""
        try:
            access = msgspec.json.decode(self._file.read_bytes(), type=Access)
        except (OSError, msgspec.MsgspecError):
            access = None
        if access == self._access:
            return
        self._let_go()
        self._access = access
        if access is not None:
            self._connect(access)

    def _connect(self, access: Access) -> None:
        from distributed import Client, Security

        try:
            security = (
                Security(
                    tls_ca_file=access.ca,
                    tls_client_cert=access.cert,
                    tls_client_key=access.key,
                    require_encryption=True,
                )
                if access.ca
                else None
            )
            self._client = Client(access.address, security=security, timeout=CONNECT_TIMEOUT_S, set_as_default=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the cell itself may need no cluster
            self._access = None
            sys.stderr.write(f"[gpumarket] the Dask cluster does not answer, so `{NAME}` is not there: {error}\n")
            return
        mine = self._namespace.get(NAME)
        if mine is None or type(mine).__module__.startswith("distributed."):
            self._namespace[NAME] = self._client

    def _let_go(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        if self._namespace.get(NAME) is client:
            del self._namespace[NAME]
        try:
            client.close(timeout=CLOSE_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001 - its scheduler is gone; there is nothing left to close in order
            sys.stderr.write(f"[gpumarket] the former Dask cluster is gone, and its futures with it: {error}\n")


def install(shell: Any) -> None:
    """Have `client` bound in this shell, when this process was started by an agent."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        driver = Driver(shell.user_ns, Path(folder) / "dask" / FILE)
        shell.events.register("pre_run_cell", driver.look)
