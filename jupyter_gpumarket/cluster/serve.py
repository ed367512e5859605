"""Puts the cluster behind a loopback port and runs both."""

from __future__ import annotations

from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets

from jupyter_gpumarket.cluster import code_routes, data_routes, map_routes
from jupyter_gpumarket.cluster.process import Cluster
from jupyter_gpumarket.cluster.reach import Reach
from jupyter_gpumarket.cluster.routes import MAX_BODY_BYTES, application


async def serve(folder: Path, reach: Reach) -> None:
    """Work in a folder until told to end.

    Raises:
        ConfigError: start.json cannot be read, or another process works there.
    """
    cluster = Cluster(folder, reach)
    (socket,) = bind_sockets(0, "127.0.0.1")
    more = (*map_routes.ROUTES, *data_routes.ROUTES, *code_routes.ROUTES)
    server = HTTPServer(application(cluster, more), max_body_size=MAX_BODY_BYTES)
    server.add_sockets([socket])
    try:
        await cluster.run(f"http://127.0.0.1:{socket.getsockname()[1]}")
    finally:
        server.stop()
        await server.close_all_connections()
