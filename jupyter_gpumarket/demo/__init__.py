"""`jupyter gpumarket demo`: the whole path on this machine, for real.

A pool's registry and two hosts run on loopback; everything else is what runs in production: broker, lease engine, SSH
links, agents, remote kernels, ledger. Called by the terminal's door only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from jupyter_gpumarket.config import ENVIRONMENT_PREFIX, private_folder

NOTEBOOK = "01-first-gpu-cell.ipynb"


def run(arguments: argparse.Namespace) -> int:
    """Run example 01 in the terminal, or open it in JupyterLab; or rent through marketplaces' stand-ins."""
    if arguments.marketplaces or arguments.faults:
        from jupyter_gpumarket.demo.markets import tour

        return _in_folder(arguments, lambda folder: tour(folder, arguments.marketplaces or "all", arguments.faults))
    return _in_folder(arguments, lambda folder: _example(folder, arguments))


def _in_folder(arguments: argparse.Namespace, act: Callable[[Path], tuple[int, bool]]) -> int:
    """Do it in a folder of its own, which goes when it ended clean; the exit code."""
    kept = arguments.folder is not None
    folder = Path(arguments.folder).absolute() if kept else Path(tempfile.mkdtemp(prefix="gpumarket-demo-"))
    private_folder(folder)
    # One folder for all of the demo's state, so that it can neither see nor touch the user's own leases.
    os.environ[ENVIRONMENT_PREFIX + "HOME"] = str(folder / "home")
    clean = False
    try:
        # A terminal that is closed, or a supervisor that ends us, must find the machines given back as after Ctrl-C.
        signal.signal(signal.SIGTERM, _interrupt)
        signal.signal(signal.SIGHUP, _interrupt)
        code, clean = act(folder)
    finally:
        if clean and not kept:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"the demo's files are in {folder}")
    return code if clean else 1


def _example(folder: Path, arguments: argparse.Namespace) -> tuple[int, bool]:
    from jupyter_gpumarket.demo.stage import Stage

    # The notebook's folder is what JupyterLab shows, so it holds nothing but the notebook.
    notebook = private_folder(folder / "notebook") / NOTEBOOK
    shutil.copyfile(example(), notebook)
    with Stage(folder) as stage:
        if arguments.lab:
            from jupyter_gpumarket.demo.lab import open_lab

            code = open_lab(notebook, port=arguments.port, browser=not arguments.no_browser)
        else:
            from jupyter_gpumarket.demo.play import play

            code = play(notebook)
    if code == 0 and not arguments.lab:
        print("The same notebook in JupyterLab: jupyter gpumarket demo --lab")
    return code, stage.is_clean


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def example() -> Path:
    """The example notebook: in a checkout beside the package, in an installation inside it."""
    inside = Path(__file__).parent.parent / "examples" / NOTEBOOK
    return inside if inside.exists() else Path(__file__).parent.parent.parent / "examples" / NOTEBOOK
