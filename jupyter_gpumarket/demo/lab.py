"""Opens the demo's notebook in JupyterLab and waits until it is closed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from jupyter_gpumarket.errors import ConfigError

STOP_S = 10.0


def open_lab(notebook: Path, *, port: int, browser: bool) -> int:
    """Run JupyterLab in the foreground; Ctrl-C ends it and the demo.

    Raises:
        ConfigError: JupyterLab is not installed.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise ConfigError("JupyterLab is not installed here; `pip install 'jupyter_gpumarket[lab]'`, then try again")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        f"--ServerApp.root_dir={notebook.parent}",
        "--ServerApp.ip=127.0.0.1",
    ]
    command += [f"--ServerApp.port={port}"] if port else []
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if _is_root() else []
    print("JupyterLab opens the same notebook; run its cells with Shift+Enter. Ctrl-C here ends the demo.")
    # A session of its own: Ctrl-C reaches us, and we end it, without its question in the same terminal.
    lab = subprocess.Popen([*command, str(notebook)], start_new_session=True)
    try:
        return lab.wait()
    except KeyboardInterrupt:
        lab.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            lab.wait(STOP_S)
        return 0
    finally:
        if lab.poll() is None:
            lab.kill()
            lab.wait()


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0
