"""A real JupyterLab with the extension, rents from a pool on this machine, and is driven by a real browser."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.labextension.conftest import NPM_S, tools
from tests.server.running import free_port

ROOT = Path(__file__).parents[2]
BUILT = ROOT / "jupyter_gpumarket" / "labextension"
TOKEN = "the-labs-token-9b1c"
BASE = "/hub/user/ann/"  # never the root, as behind JupyterHub
START_S = 90.0
PATIENCE_MS = 60_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@dataclass
class Lab:
    """A running JupyterLab: stop and start it again, and open pages in it."""

    folder: Path
    home: Path
    port: int
    application: str = "jupyterlab"
    process: subprocess.Popen[bytes] | None = None
    pages: list[Any] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{BASE.rstrip('/')}"

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def log(self) -> Path:
        return self.folder / "lab.log"

    def start(self) -> None:
        """Start it (again, on the same port) and wait until it answers."""
        own = {name: self.folder / name for name in ("config", "runtime", "data", "ipython", "root", "user-settings")}
        for path in own.values():
            path.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GPUMARKET", "JPY"))}
        environment |= {f"JUPYTER_{n.upper()}_DIR": str(own[n]) for n in ("config", "runtime", "data")}
        environment |= {"JUPYTERLAB_SETTINGS_DIR": str(own["user-settings"]), "JUPYTER_GPUMARKET_HOME": str(self.home)}
        environment |= {"IPYTHONDIR": str(own["ipython"]), "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
        quiet = own["user-settings"] / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
        quiet.parent.mkdir(parents=True, exist_ok=True)
        quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
        extensions = own["data"] / "labextensions"
        if not extensions.exists():
            extensions.mkdir()
            (extensions / "jupyter-gpumarket").symlink_to(built())
        content = {
            "ServerApp": {"jpserver_extensions": {"jupyter_gpumarket": True}},
            "IdentityProvider": {"token": TOKEN},
        }
        (own["config"] / "jupyter_server_config.json").write_text(json.dumps(content))
        argv = [sys.executable, "-m", self.application, "--no-browser", "--allow-root", f"--port={self.port}"]
        argv += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={own['root']}"]
        argv += [f"--ServerApp.base_url={BASE}", "--LabApp.expose_app_in_browser=True"]
        argv += ["--JupyterNotebookApp.expose_app_in_browser=True"] if self.application == "notebook" else []
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=self.root
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert time.monotonic() < deadline, self.log.read_text("utf-8", "replace")[-8000:]
            time.sleep(0.2)

    def stop(self) -> None:
        """End it; its kernels end with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def write(self, name: str, *cells: str) -> str:
        """A notebook with these code cells; its name."""
        code = [
            {
                "cell_type": "code",
                "id": f"cell-{n}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": text,
            }
            for n, text in enumerate(cells)
        ]
        spec = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (self.root / name).write_text(
            json.dumps({"cells": code, "metadata": spec, "nbformat": 4, "nbformat_minor": 5}), encoding="utf-8"
        )
        return name

    def address(self, path: str = "/lab") -> str:
        return f"{self.url}{path}?token={TOKEN}"

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text("utf-8", "replace")[-8000:]
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/api", trust_env=False, timeout=5).status_code == 200
        return False


def built() -> Path:
    """The front end, bundled; built now where nobody has, or where its sources are newer."""
    sources = [p for p in (ROOT / "labextension").rglob("*") if p.is_file() and "node_modules" not in p.parts]
    newest = max(p.stat().st_mtime for p in sources if "lib" not in p.parts)
    made = BUILT / "package.json"
    if not made.exists() or made.stat().st_mtime < newest:
        folder = ROOT / "labextension"
        for argv in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "build"]):
            if argv[1] == "ci" and (folder / "node_modules").exists():
                continue
            done = subprocess.run(
                argv, cwd=folder, env=tools(), capture_output=True, text=True, timeout=NPM_S, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
        made.touch()
    return BUILT


@contextlib.contextmanager
def lab_in(folder: Path, home: Path, application: str = "jupyterlab") -> Iterator[Lab]:
    """A JupyterLab (or Notebook 7) that rents by the broker of `home`."""
    folder.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder=folder, home=home, port=free_port(), application=application)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The machine's own Chromium. In CI it must be there; else tests that need it are skipped, visibly."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("needs Chromium")
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def open_page(browser: Any, address: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Any:
    """A page of its own context on a started JupyterLab."""
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.wait_for_selector("#main, #jp-MainLogo", state="attached")
    page.wait_for_function("() => window.jupyterapp !== undefined")
    page.evaluate("() => window.jupyterapp.restored")
    if dark:
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
        page.wait_for_selector("body[data-jp-theme-light='false']", state="attached")
    return page


READY = """
async () => {
  const context = window.jupyterapp.shell.currentWidget.context;
  await context.ready;
  await context.sessionContext.ready;
  await context.sessionContext.session.kernel.info;
  return true;
}
"""


def open_notebook(browser: Any, lab: Lab, name: str, **options: Any) -> Any:
    """A page on a notebook whose kernel is ready."""
    # A workspace of its own, so that no notebook of an earlier page comes along.
    page = open_page(browser, lab.address(f"/lab/workspaces/{secrets.token_hex(4)}/tree/{name}"), **options)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.evaluate(READY)
    return page


def command(page: Any, name: str, args: dict[str, Any] | None = None) -> Any:
    """Run one of the application's commands, as soon as it is there."""
    page.wait_for_function("name => window.jupyterapp?.commands.hasCommand(name)", arg=name)
    return page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, args or {}])


def until(what: str, holds: Callable[[], Any], timeout_s: float = PATIENCE_MS / 1000) -> Any:
    """Poll until something holds; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return value
