"""A real JupyterLab, Notebook 7 beside it, with the extension as built here, and a real Chromium to use it with."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.labextension.conftest import SOURCE, run_in
from tests.server.running import ROOT, free_port

TOKEN = "the-labs-token-71c2"
BASE = "/lab-77/"  # never the root, as behind a proxy
START_S = 90.0
PATIENCE_MS = 60_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def built(front_end: Path) -> Path:
    """Build both bundles from this source; the folder of the extension. Safe where several tests want it at once."""
    with (SOURCE / "package.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run_in(front_end, "npm", "run", "build")
        made = front_end.parent / "jupyter_gpumarket"
        widget = ROOT / "jupyter_gpumarket" / "static"
        if made / "static" != widget and (made / "static").exists():
            # Kernels import the package from here, wherever the front end was built.
            shutil.copytree(made / "static", widget, dirs_exist_ok=True)
    return made / "labextension"


def notebook_in(lab: Lab, name: str, *cells: str) -> None:
    """A notebook with these cells, which asks for no kernel when it is opened."""
    made = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(made, str(lab.root / name))


@dataclass
class Lab:
    """A running server of JupyterLab."""

    url: str
    root: Path
    log: Path
    process: subprocess.Popen[bytes]

    def address(self, path: str = "lab") -> str:
        """Where a page is, with the token."""
        return f"{self.url}{path}?token={TOKEN}"


@contextlib.contextmanager
def lab_in(folder: Path, home: Path, extension: Path | None, *options: str) -> Iterator[Lab]:
    """JupyterLab in its own folders, renting from the broker of `home`; without an extension: the control."""
    names = ("config", "runtime", "data", "ipython", "root", "workspaces", "settings")
    own = {name: folder / name for name in names}
    for path in own.values():
        path.mkdir(parents=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "GPUMARKET", "JPY"))}
    environment |= {f"JUPYTER_{n.upper()}_DIR": str(own[n]) for n in ("config", "runtime", "data")}
    environment |= {f"JUPYTERLAB_{n.upper()}_DIR": str(own[n]) for n in ("workspaces", "settings")}
    environment |= {"IPYTHONDIR": str(own["ipython"]), "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
    enabled = {"jupyter_gpumarket": extension is not None, "jupyterlab": True, "notebook": True, "ipyparallel": False}
    (own["config"] / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": enabled}, "IdentityProvider": {"token": TOKEN}})
    )
    if extension is not None:
        (own["data"] / "labextensions").mkdir()
        (own["data"] / "labextensions" / "jupyter-gpumarket").symlink_to(extension)
    # What others have installed here is none of our business.
    (own["config"] / "labconfig").mkdir()
    (own["config"] / "labconfig" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": {"ipyparallel-labextension": True}})
    )
    # The question whether news may be fetched would lie over everything.
    quiet = own["settings"] / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    (quiet / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    port = free_port()
    argv = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.ip=127.0.0.1",
    ]
    argv += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={own['root']}", f"--ServerApp.base_url={BASE}"]
    argv += ["--LabApp.expose_app_in_browser=True"]
    argv += [f"--GpuMarketApp.home={home}"] if extension is not None else []
    log = folder / "lab.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*argv, *options], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=ROOT
        )
    lab = Lab(f"http://127.0.0.1:{port}{BASE}", own["root"], log, process)
    try:
        _wait_until_up(lab)
        yield lab
    except BaseException:
        sys.stderr.write(log.read_text("utf-8", "replace")[-6000:])
        raise
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_up(lab: Lab) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert lab.process.poll() is None, lab.log.read_text("utf-8", "replace")
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{lab.url}api", trust_env=False, timeout=5).status_code == 200:
                return
        time.sleep(0.1)
    pytest.fail(f"JupyterLab does not answer: {lab.log.read_text('utf-8', 'replace')}")


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """The machine's own Chromium; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


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
        page.wait_for_selector("#jp-main-dock-panel", timeout=PATIENCE_MS)
        page.wait_for_function("window.jupyterapp && window.jupyterapp.restored.then(() => true)", timeout=PATIENCE_MS)
    return page


def open_sidebar(page: Any, width_px: int | None = None) -> Any:
    """Our panel, opened as a user does, and made so wide."""
    panel = page.locator("#gm-sidebar")
    panel.wait_for(state="attached")
    if not panel.is_visible():  # as it was left, after a reload
        page.locator('li[data-id="gm-sidebar"]').click()
    panel.wait_for(state="visible")
    if width_px is not None:
        page.evaluate(
            """width => {
              const sizes = window.jupyterapp.shell._hsplitPanel ?? null;
              const side = document.querySelector('#jp-left-stack');
              const total = sizes.node.clientWidth;
              const now = sizes.relativeSizes();
              sizes.setRelativeSizes([width / total, 1 - width / total - (now[2] || 0), now[2] || 0]);
              return side.clientWidth;
            }""",
            width_px,
        )
    return panel
