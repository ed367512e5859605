"""`python -m jupyter_gpumarket.broker`: run the broker in the foreground. Doors start it detached."""

from __future__ import annotations

import sys

from jupyter_gpumarket.broker.process import main

sys.exit(main())
