"""Fixtures that all parts share."""

import os

from tests.pool_fixtures import pool, start_pool

__all__ = ["pool", "start_pool"]

# No test asks the internet; what only looks at public lists is tested on stand-ins.
os.environ.setdefault("JUPYTER_GPUMARKET_PUBLIC_LISTS", "0")
