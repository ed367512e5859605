"""Commands that become another process: the broker, a pool's registry, a pool's host."""

from __future__ import annotations

import argparse
import os
import sys


def serve(arguments: argparse.Namespace) -> int:
    """Run the broker here, in the foreground; or end the one that runs."""
    if arguments.stop:
        return _stop()
    return _become("jupyter_gpumarket.broker", [])


def _stop() -> int:
    from jupyter_gpumarket.client import connect
    from jupyter_gpumarket.errors import BrokerUnavailable

    try:
        with connect(start=False) as client:
            client.shutdown()
    except BrokerUnavailable:
        print("no broker runs")
        return 0
    print("the broker is asked to end; what is rented goes on, and the next call starts a new broker")
    return 0


def pool(arguments: argparse.Namespace) -> int:
    """Run a pool's registry; `pool user NAME` makes a user of it."""
    words = arguments.rest
    return _become("jupyter_gpumarket.pool", words if words[:1] == ["user"] else ["registry", *words])


def host(arguments: argparse.Namespace) -> int:
    """Lend this machine."""
    return _become("jupyter_gpumarket.pool", ["host", *arguments.rest])


def _become(module: str, options: list[str]) -> int:
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *options])  # noqa: S606 - argv list, no shell
