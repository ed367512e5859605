"""The doors' one way to the broker and to cluster processes.

    client = connect()                     # starts the broker when none runs
    view = client.wish(LeaseRequest(...))
    cluster = client.cluster(view.lease.lease_id)

Written once, as async (`AsyncClient`, `AsyncClusterClient`); `Client` and `ClusterClient` bridge the same calls to
threads that have no event loop. Errors of the broker are raised here as the same classes of `errors`.
"""

from __future__ import annotations

from jupyter_gpumarket.client.bridge import Client, ClusterClient, connect
from jupyter_gpumarket.client.broker import AsyncClient, connect_async
from jupyter_gpumarket.client.cluster import AsyncClusterClient

__all__ = ["AsyncClient", "AsyncClusterClient", "Client", "ClusterClient", "connect", "connect_async"]
