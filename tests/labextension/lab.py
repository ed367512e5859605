"""A real JupyterLab with the front end as built from these sources, for tests in a browser: own folders, own port."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.server.running import TOKEN, free_port

ROOT = Path(__file__).parents[2]
BASE = "/lab-42/"  # never the root, as behind a proxy or JupyterHub
START_S = 90.0
OFF = ("ipyparallel", "jupyter_lsp", "notebook_shim", "jupyter_server_terminals")


@dataclass
class Lab:
    """A running JupyterLab. `start` and `stop` may be called again, as a restart of the server."""

    folder: Path
    argv: list[str]
    environment: dict[str, str]
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Its address, without the slash at the end."""
        return f"http://127.0.0.1:{self.port}{BASE.rstrip('/')}"

    @property
    def root(self) -> Path:
        """Where its notebooks are."""
        return self.folder / "root"

    def page(self, path: str = "lab") -> str:
        """The address of a page, with the token."""
        return f"{self.url}/{path}?token={TOKEN}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = (self.folder / "lab.log").open("ab")
        self.process = subprocess.Popen(
            self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd=self.root
        )
        log.close()
        until_s = time.monotonic() + START_S
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/api", trust_env=False, timeout=5).status_code == 200:
                    return
            assert self.process.poll() is None, self.logged()
            assert time.monotonic() < until_s, self.logged()
            time.sleep(0.2)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logged(self) -> str:
        """What the server said."""
        return (self.folder / "lab.log").read_text("utf-8", "replace")


@contextlib.contextmanager
def lab_in(folder: Path, home: Path, extension: Path, *options: str) -> Iterator[Lab]:
    """A JupyterLab whose front end is the built `extension`, and whose server and kernels use the broker of `home`."""
    own = {name: folder / name for name in ("config", "runtime", "data", "ipython", "root", "workspaces", "settings")}
    for path in own.values():
        path.mkdir(parents=True)
    (own["data"] / "labextensions").mkdir()
    (own["data"] / "labextensions" / "jupyter-gpumarket").symlink_to(extension)
    quiet = own["settings"] / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    enabled = {"jupyter_gpumarket": True, "jupyterlab": True} | dict.fromkeys(OFF, False)
    (own["config"] / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": enabled}, "IdentityProvider": {"token": TOKEN}})
    )
    # Another package's extension asks for its server part, which is off here, in a dialog over everything.
    (own["config"] / "labconfig").mkdir()
    (own["config"] / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"ipyparallel-labextension": True}})
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GPUMARKET", "JPY"))}
    environment |= {f"JUPYTER_{n.upper()}_DIR": str(own[n]) for n in ("config", "runtime", "data")}
    environment |= {f"JUPYTERLAB_{n.upper()}_DIR": str(own[n]) for n in ("workspaces", "settings")}
    environment |= {"IPYTHONDIR": str(own["ipython"]), "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    port = free_port()
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    argv += ["--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1", f"--ServerApp.base_url={BASE}"]
    argv += [f"--ServerApp.root_dir={own['root']}", f"--GpuMarketApp.home={home}", "--GpuMarketApp.refresh_s=0.5"]
    argv += ["--LabApp.expose_app_in_browser=True", *options]
    lab = Lab(folder=folder, argv=argv, environment=environment, port=port)
    lab.start()
    try:
        yield lab
    finally:
        lab.stop()
