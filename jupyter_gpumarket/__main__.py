"""`python -m jupyter_gpumarket` is `jupyter gpumarket`."""

from __future__ import annotations

import sys

from jupyter_gpumarket.cli import main

sys.exit(main())
