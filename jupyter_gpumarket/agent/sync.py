"""In the processes that run the user's code: notice that their own modules have changed, and drop the former ones.

When a file of Python changed or went, all modules that came from the code folder are taken out of `sys.modules`, so
that the next import reads them anew and old and new parts never mix. A kernel does so before a cell, never within one;
a Dask process (this module is preloaded into it) within a tenth of a second, from a thread of its own.

Standard library and wire only: it is imported before anything else of the user's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from jupyter_gpumarket.agent.processes import FOLDER_VARIABLE

FOLDER, CURRENT, SEEN = "sync", "current", "seen"
PACKAGES = "packages"
LOOK_EVERY_S = 0.1
CODE = (".py", ".pyc", ".so", ".pyd")


def search_path(root: Path, before: str) -> str:
    """PYTHONPATH for what an agent starts: what it has itself, the user's own modules, packages brought for them."""
    own = [str(root / FOLDER / CURRENT), str(root / PACKAGES / CURRENT)]
    return os.pathsep.join([*(part for part in before.split(os.pathsep) if part), *own])


def tree_at(root: Path) -> str:
    """Which list of files the code folder shows now; empty where there is none."""
    try:
        return Path(os.readlink(root / CURRENT)).name
    except OSError:
        return ""


class Refresher:
    """One process's knowledge of the code folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._place = f"{root / CURRENT}{os.sep}"
        self._packages = root.parent / PACKAGES
        self._packages_seen = tree_at(self._packages)
        self._tree = tree_at(root)
        self._files = self._read(self._tree)

    @property
    def tree(self) -> str:
        """What this process goes by."""
        return self._tree

    def look(self, namespace: dict[str, Any] | None = None) -> list[str]:
        """Drop modules if code has changed; which ones. Names of `namespace` that led to them lead to the new ones.

        A module that is being imported right now is waited for: nothing is dropped, and the next look sees it.
        """
        packages = tree_at(self._packages)
        if packages != self._packages_seen:
            self._packages_seen = packages
            importlib.invalidate_caches()
        tree = tree_at(self._root)
        if tree == self._tree:
            return []
        files = self._read(tree)
        former = {name: module for name, module in list(sys.modules.items()) if self._is_ours(module)}
        if any(_is_initializing(module) for module in former.values()):
            return []
        changed = {path for path in self._files.keys() | files.keys() if self._files.get(path) != files.get(path)}
        self._tree, self._files = tree, files
        importlib.invalidate_caches()
        if not any(path.endswith(CODE) for path in changed):
            return []
        for name in former:
            sys.modules.pop(name, None)
        if namespace is not None:
            rebind(namespace, former)
        return sorted(former)

    def _is_ours(self, module: Any) -> bool:
        if not isinstance(module, ModuleType):
            return False
        with contextlib.suppress(Exception):  # a lazy module may do anything when it is asked
            file = module.__dict__.get("__file__")
            places = [file] if file else list(module.__dict__.get("__path__", ()))
            return any(str(place).startswith(self._place) for place in places)
        return False

    def _read(self, tree: str) -> dict[str, str]:
        try:
            listed = json.loads((self._root / f"{tree}.json").read_bytes())
            return {str(file["path"]): str(file["sha256"]) for file in listed}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def rebind(namespace: dict[str, Any], former: dict[str, ModuleType]) -> None:
    """Let names that stood for a former module, or for a function or class of one, stand for the new one."""
    new: dict[str, ModuleType | None] = {}

    def again(module: str) -> ModuleType | None:
        if module not in new:
            new[module] = None
            try:
                new[module] = importlib.import_module(module)
            except Exception as error:  # noqa: BLE001 - the user's own code runs here, which may raise anything
                sys.stderr.write(f"[gpumarket] {module} cannot be imported anew: {type(error).__name__}: {error}\n")
        return new[module]

    for name, value in list(namespace.items()):
        if isinstance(value, ModuleType):
            if former.get(value.__name__) is value and (module := again(value.__name__)) is not None:
                namespace[name] = module
            continue
        owner, own_name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if not isinstance(owner, str) or not isinstance(own_name, str) or owner not in former:
            continue
        if former[owner].__dict__.get(own_name) is value and (module := again(owner)) is not None:
            namespace[name] = module.__dict__.get(own_name, value)


def _is_initializing(module: ModuleType) -> bool:
    return bool(getattr(module.__dict__.get("__spec__"), "_initializing", False))


def of_this_process() -> Refresher | None:
    """For a process that an agent started; None elsewhere."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return Refresher(Path(folder) / FOLDER) if folder else None


def install(shell: Any) -> Refresher | None:
    """Have the shell look before each cell."""
    refresher = of_this_process()
    if refresher is not None:
        shell.events.register("pre_run_cell", lambda *_: refresher.look(shell.user_ns))
    return refresher


# ── in Dask's processes ──────────────────────────────────────────────────────────────────────────────────────────────


def dask_setup(_server: Any) -> None:
    """Called by Dask when a scheduler or worker starts, before it is given any work."""
    refresher = of_this_process()
    if refresher is not None:
        _tell(refresher)
        threading.Thread(target=_keep_looking, args=(refresher,), name="gpumarket-sync", daemon=True).start()


def _keep_looking(refresher: Refresher) -> None:
    told = refresher.tree
    while True:
        time.sleep(LOOK_EVERY_S)
        with contextlib.suppress(Exception):  # whatever it is, the next look must come
            refresher.look()
            if refresher.tree != told:
                _tell(refresher)
                told = refresher.tree


def _tell(refresher: Refresher) -> None:
    """So that the agent knows when all have dropped the former modules."""
    seen = Path(os.environ[FOLDER_VARIABLE]) / FOLDER / SEEN
    draft = seen / f"{os.getpid()}.new"
    with contextlib.suppress(OSError):
        draft.write_text(refresher.tree, "ascii")
        draft.replace(seen / str(os.getpid()))
