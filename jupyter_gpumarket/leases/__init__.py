"""Leases: one rented node each, from the wish to the confirmed release.

`machine` decides (pure), `engine` performs. The broker is the only caller.
"""

from __future__ import annotations

from jupyter_gpumarket.leases.engine import LeaseEngine
from jupyter_gpumarket.leases.keys import KeyStore
from jupyter_gpumarket.leases.policy import Policy
from jupyter_gpumarket.leases.ports import ClusterPort, KeyBox, LeaseStore, OfferSource

__all__ = ["ClusterPort", "KeyBox", "KeyStore", "LeaseEngine", "LeaseStore", "OfferSource", "Policy"]
