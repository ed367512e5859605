"""The processes of a lease: found by a variable in their environment, which every descendant inherits."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import psutil

FOLDER_VARIABLE = "GPUMARKET_FOLDER"
END_TIMEOUT_S = 3.0


def of_folder(root: Path) -> list[psutil.Process]:
    """Every process that was started by an agent of this folder, but for the asking one."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(FOLDER_VARIABLE) == str(root):
                found.append(process)
    return found


def end_all(root: Path) -> None:
    """Kill them all, and those that they start meanwhile."""
    for _ in range(5):
        living = of_folder(root)
        if not living:
            return
        for process in living:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(living, timeout=END_TIMEOUT_S)


def remove_tree(root: Path) -> None:
    """Remove what is in the folder, but for the watchdog's part: it goes on to the deadline if the release fails."""
    for path in root.iterdir():
        if path.name.startswith("watchdog") or path.name == "stopped":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
