"""A compute broker that lives in Jupyter.

    %load_ext jupyter_gpumarket
    %%gpu --gpu RTX4090 -o weights

In Python: `import jupyter_gpumarket as gm`, then `gm.offers()`, `gm.costs()`, `gm.leases()`, `gm.rent()`,
`gm.release()`. Everything is imported on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

__all__ = [
    "GPUCluster",
    "OfferPicker",
    "__version__",
    "budgets",
    "charges",
    "cluster",
    "connect",
    "costs",
    "drop_search",
    "explain",
    "extend",
    "get",
    "leases",
    "map_results",
    "maps",
    "offers",
    "price_history",
    "put",
    "release",
    "rent",
    "save_search",
    "searches",
    "set_budget",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(_door("picker" if name == "OfferPicker" else "public"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext jupyter_gpumarket`: adds `%%gpu` and `%gpu` to this shell."""
    _door("extension").load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """`%unload_ext jupyter_gpumarket`: takes the magics away; nodes go on until they are given back."""
    _door("extension").unload(shell)


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    """Jupyter Server's hook: the extension that serves the routes under /gpumarket."""
    app = importlib.import_module(f"{__name__}.server.app")
    return [{"module": f"{__name__}.server.app", "app": app.GpuMarketApp}]


def _door(module: str) -> Any:
    """A module of the notebook's door, by name: every part imports this file, so it must not import any part."""
    return importlib.import_module(f"{__name__}.notebook.{module}")
