"""Adding the magics to a shell and taking them away again."""

from __future__ import annotations

from typing import Any

from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.magics import GpuMagics


def load(shell: Any, notebook: Notebook | None = None) -> GpuMagics:
    """Register `%%gpu` and `%gpu`. Loading twice leaves one set."""
    magics = GpuMagics(shell, notebook)
    shell.register_magics(magics)
    return magics


def unload(shell: Any) -> None:
    """Take them away."""
    shell.magics_manager.magics["cell"].pop("gpu", None)
    shell.magics_manager.magics["line"].pop("gpu", None)
    shell.magics_manager.registry.pop(GpuMagics.__name__, None)
