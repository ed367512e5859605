"""A real JupyterLab (and Notebook 7 beside it) with the extension as built here, and a real Chromium to use it with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from jupyter_core.paths import jupyter_path
from nbformat.v4 import new_code_cell, new_notebook

from tests.labextension.conftest import NPM_S, SOURCE, run_in
from tests.pool_fixtures import RunningPool
from tests.server.running import ROOT, TOKEN, free_port

BUILT = ROOT / "jupyter_gpumarket" / "labextension"
BASE = "/hub/user/ann/"  # never the root, as behind JupyterHub
START_S = 90.0
PATIENCE_MS = 120_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OWN = ("config", "runtime", "data", "ipython", "root", "workspaces", "settings")


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

    def address(self, path: str = "lab") -> str:
        """Where a page is, with the token."""
        return f"{self.url}/{path}?token={TOKEN}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        with (self.folder / "lab.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment, cwd=self.root
            )
        until("JupyterLab answers", self._answers, START_S)

    def stop(self) -> None:
        """SIGTERM, and SIGKILL when that is not obeyed; its kernels end with it."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def logged(self) -> str:
        """What the server said."""
        return (self.folder / "lab.log").read_text("utf-8", "replace")[-8000:]

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.logged()
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/api", trust_env=False, timeout=5).status_code == 200
        return False


def built() -> Path:
    """The folder of the extension, built from these sources where they are newer than what is there; one at a time."""
    with (SOURCE / "package.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        inputs = [
            SOURCE / "package.json",
            SOURCE / "build.mjs",
            *(SOURCE / "src").rglob("*"),
            *(SOURCE / "schema").rglob("*"),
        ]
        made = BUILT / "package.json"
        if not made.exists() or made.stat().st_mtime < max(one.stat().st_mtime for one in inputs):
            if not (SOURCE / "node_modules").exists():
                run_in(SOURCE, "npm", "ci", "--no-audit", "--no-fund", timeout_s=NPM_S)
            run_in(SOURCE, "npm", "run", "build")
            made.touch()
    return BUILT


@contextlib.contextmanager
def lab_in(folder: Path, home: Path, *options: str, extension: Path | None) -> Iterator[Lab]:
    """JupyterLab in its own folders, renting from the broker of `home`; without an extension: the control."""
    own = {name: folder / name for name in OWN}
    for path in own.values():
        path.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GPUMARKET", "JPY"))}
    environment |= {f"JUPYTER_{n.upper()}_DIR": str(own[n]) for n in ("config", "runtime", "data")}
    environment |= {f"JUPYTERLAB_{n.upper()}_DIR": str(own[n]) for n in ("workspaces", "settings")}
    environment |= {"IPYTHONDIR": str(own["ipython"]), "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    # What is built here goes before the copy that an installation has made of it.
    environment["JUPYTER_PREFER_ENV_PATH"] = "0"
    enabled = {"jupyter_gpumarket": extension is not None, "jupyterlab": True, "notebook": True, "ipyparallel": False}
    enabled |= {"dask_labextension": False, "jupyter_server_proxy": False}
    (own["config"] / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": enabled}, "IdentityProvider": {"token": TOKEN}})
    )
    # What others have installed here is none of our business.
    (own["config"] / "labconfig").mkdir()
    others = ("ipyparallel-labextension", "dask-labextension", "@jupyterhub/jupyter-server-proxy")
    (own["config"] / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": dict.fromkeys(others, True)})
    )
    # The question whether news may be fetched would lie over everything.
    quiet = own["settings"] / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    if extension is None:
        # Where this package is installed, its front end is as well: the control must not have it.
        options = (*options, f"--LabApp.labextensions_path={_others(own['data'])}")
    port = free_port()
    argv = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    argv += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={own['root']}"]
    argv += [f"--ServerApp.base_url={BASE}", "--LabApp.expose_app_in_browser=True"]
    if extension is not None:
        (own["data"] / "labextensions").mkdir()
        (own["data"] / "labextensions" / "jupyter-gpumarket").symlink_to(extension)
        argv += [f"--GpuMarketApp.home={home}"]
    lab = Lab(folder=folder, argv=[*argv, *options], environment=environment, port=port)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()


def _others(data: Path) -> Path:
    """A folder with all front ends that are installed here but ours."""
    folder = data / "other-labextensions"
    folder.mkdir()
    for place in jupyter_path("labextensions"):
        for one in Path(place).glob("*"):
            if one.name != "jupyter-gpumarket" and not (folder / one.name).exists():
                (folder / one.name).symlink_to(one)
    return folder


def notebook_in(lab: Lab, name: str, *cells: str) -> str:
    """A notebook with these cells, which asks for no kernel when it is opened; its name."""
    made = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, str(lab.root / name))
    return name


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


def open_lab(browser: Any, lab: Lab, path: str = "lab", **options: Any) -> Any:
    """A page in a new browser session, ready to be used. `page.problems` collects what it complains of."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if line.type == "error" else None)
    page.goto(lab.address(path))
    if path.startswith("lab"):
        page.wait_for_selector("#jp-main-dock-panel")
        page.wait_for_function("window.jupyterapp && window.jupyterapp.restored.then(() => true)")
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
    """A page on a notebook whose kernel is ready, in a workspace of its own: nothing of an earlier page comes along."""
    page = open_lab(browser, lab, f"lab/workspaces/{secrets.token_hex(4)}/tree/{name}", **options)
    until_ready(page)
    return page


def until_ready(page: Any) -> None:
    """Wait until the notebook in front can run cells: what is pressed before is lost."""
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.evaluate(READY)


def run_all(page: Any) -> None:
    """Start all cells of the notebook in front."""
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def open_sidebar(page: Any, width_px: int | None = None) -> Any:
    """Our panel, opened as a user does, and made so wide."""
    page.wait_for_function("window.jupyterapp?.restored.then(() => true)")
    panel = page.locator("#gm-sidebar")
    panel.wait_for(state="attached")
    if not panel.is_visible():  # as it was left, after a reload
        page.locator('li[data-id="gm-sidebar"]').click()
    panel.wait_for(state="visible")
    if width_px is not None:
        widen(page, width_px)
    return panel


def widen(page: Any, width_px: int) -> None:
    """Make the sidebar so wide."""
    page.evaluate(
        """width => {
          const split = window.jupyterapp.shell._hsplitPanel;
          const right = split.relativeSizes()[2] || 0;
          const left = width / split.node.clientWidth;
          split.setRelativeSizes([left, 1 - left - right, right]);
        }""",
        width_px,
    )


def command(page: Any, name: str, args: dict[str, Any] | None = None) -> Any:
    """Run one of the application's commands, as soon as it is there and no layout of before is put back any more."""
    page.wait_for_function("name => window.jupyterapp?.commands.hasCommand(name)", arg=name)
    page.wait_for_function("window.jupyterapp.restored.then(() => true)")
    return page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, args or {}])


def until(what: str, holds: Callable[[], Any], timeout_s: float = PATIENCE_MS / 1000) -> Any:
    """Poll until something holds; its value."""
    deadline = time.monotonic() + timeout_s
    while not (value := holds()):
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.1)
    return value


def rented(pool: RunningPool) -> int:
    """How many rentals the pool knows of now."""
    return len([one for one in pool.api("GET", "/v1/rentals").json()["rentals"] if one["status"] != "gone"])
