"""`app.zip`: the part of this package that runs on a node, built from whatever is installed here.

It is made from the package's own files (a checkout, an editable install or a wheel alike), always the same bytes for
the same sources, so that a hash tells whether a node has it already.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from jupyter_gpumarket.models import Record

PACKAGE = "jupyter_gpumarket"
# What the agent imports (the architecture test holds it to these), and nothing else of this package.
NODE_PARTS = ("agent", "wire", "codecs")
NODE_MODULES = ("errors.py", "clock.py", "money.py", "models.py")
# Zip cannot say an earlier time.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644


class Bundle(Record, frozen=True, kw_only=True):
    """The archive and its SHA-256."""

    content: bytes
    sha256: str


@cache
def bundle() -> Bundle:
    """The archive for this process's own version of the package."""
    root = files(PACKAGE)
    sources = {f"{PACKAGE}/{name}": root.joinpath(name).read_bytes() for name in NODE_MODULES}
    # The package's own __init__ names doors that a node does not have.
    sources[f"{PACKAGE}/__init__.py"] = b'"""The part of jupyter_gpumarket that runs on a node."""\n'
    for part in NODE_PARTS:
        sources |= _tree(root.joinpath(part), f"{PACKAGE}/{part}")
    content = _zipped(sources)
    return Bundle(content=content, sha256=hashlib.sha256(content).hexdigest())


def node_program(path: str) -> bytes:
    """The source of a program that is sent to nodes, such as `agent/watchdog.py`."""
    return files(PACKAGE).joinpath(path).read_bytes()


def _tree(folder: Traversable, name: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for entry in folder.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            found |= _tree(entry, f"{name}/{entry.name}")
        elif entry.name.endswith((".py", ".json", ".typed")):
            found[f"{name}/{entry.name}"] = entry.read_bytes()
    return found


def _zipped(sources: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(sources):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = _PLAIN_FILE << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, sources[name])
    return memory.getvalue()
