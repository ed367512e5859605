"""Which Python and which packages this node has."""

from __future__ import annotations

import importlib.metadata
import platform

NODE_PACKAGES = (
    "dask",
    "distributed",
    "cloudpickle",
    "msgpack",
    "numpy",
    "ipykernel",
    "jupyter_client",
    "msgspec",
    "psutil",
)


def versions() -> dict[str, str]:
    """Package name -> version; a package that is not there is left out."""
    found: dict[str, str] = {}
    for name in NODE_PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def report() -> dict[str, object]:
    """What `python -m jupyter_gpumarket.agent check` prints as JSON."""
    return {"python": platform.python_version(), "versions": versions()}
