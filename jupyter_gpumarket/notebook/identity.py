"""For whom and for which notebook a cell runs: what budgets, reports and finding a lease again go by."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping
from typing import Any

from jupyter_gpumarket.config import BASE_URL_VARIABLE
from jupyter_gpumarket.models import Owner

# Jupyter Server tells the kernel its notebook's path in the first; papermill tells input and output; the last is for
# everyone who starts a kernel by other means and wants costs booked on a name.
NOTEBOOK_VARIABLES = ("JUPYTER_GPUMARKET_NOTEBOOK", "JPY_SESSION_NAME", "PAPERMILL_OUTPUT_PATH", "PAPERMILL_INPUT_PATH")


def owner(project: str, namespace: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> Owner:
    """The owner of what this notebook rents. An empty notebook means that nobody told its name."""
    environment = os.environ if environment is None else environment
    return Owner(user=user_name(), project=project, notebook=notebook_path(namespace, environment))


def notebook_path(namespace: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """The notebook's path, from whoever started the kernel; VS Code puts it into the namespace."""
    for variable in NOTEBOOK_VARIABLES:
        if environment.get(variable):
            return environment[variable]
    told = namespace.get("__vsc_ipynb_file__")
    return told if isinstance(told, str) else ""


def in_jupyter_server(environment: Mapping[str, str] | None = None) -> str:
    """Under which path the Jupyter server of this kernel is, `/user/ann/` for example; empty elsewhere.

    Its extension says so in the environment, which other programs that were started from there have as well: only in a
    kernel is somebody looking through that server.
    """
    from IPython.core.getipython import get_ipython

    base = (os.environ if environment is None else environment).get(BASE_URL_VARIABLE, "")
    return base if base.startswith("/") and getattr(get_ipython(), "kernel", None) is not None else ""


def user_name() -> str:
    """The user's name, or empty where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def cell_id(shell: Any) -> str:
    """The cell's id, where the front end tells it."""
    try:
        parent = shell.get_parent()
    except AttributeError:
        return ""
    found = (parent or {}).get("metadata", {}).get("cellId", "")
    return found if isinstance(found, str) else ""
