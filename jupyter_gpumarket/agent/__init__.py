"""What runs on a node: sessions, the output log, the watchdog, GPU facts, Dask processes, byte streams.

Started as `python -m jupyter_gpumarket.agent serve --folder F`. It also runs from a zip on PYTHONPATH, so nothing here
opens its own files by path. `watchdog.py` stands alone: it is copied to the node and started before anything else.
"""

from __future__ import annotations

# The part of the package that a node needs, by name below `jupyter_gpumarket`.
NODE_MODULES = ("__init__", "errors", "clock", "money", "models", "wire", "codecs", "agent")
