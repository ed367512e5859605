"""`python -m jupyter_gpumarket.simulator`."""

from __future__ import annotations

import sys

from jupyter_gpumarket.simulator.process import main

if __name__ == "__main__":
    sys.exit(main())
