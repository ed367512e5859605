"""The last moments of a node: what its cells have declared as outputs is brought over before it goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from jupyter_gpumarket.cluster.runs import Run
from jupyter_gpumarket.cluster.talk import Talk

NEWS_S = 0.5


def worth_saving(runs: Iterable[Run]) -> list[Run]:
    """Cells whose end is not here yet: those that have ended on the node, and those that have declared outputs.

    What ended first comes first. A node's part in a map is no cell: its results come one by one.
    """
    found = [
        run
        for run in runs
        if not run.state.is_settled
        and not run.state.request.map_id
        and (run.state.has_ended_on_node or run.state.request.outputs)
    ]
    return sorted(found, key=lambda run: (not run.state.has_ended_on_node, run.state.created_ms))


async def save_outputs(runs: Iterable[Run], talk: Talk, *, timeout_s: float, reason: str) -> list[Run]:
    """Interrupt cells that have declared outputs, and wait until all is here; those of which something is missing.

    Cells without declared outputs go on: to end them early would bring nothing.
    """
    waited = worth_saving(runs)
    for run in waited:
        talk.interrupt(run, save_for=reason or "its node is given back")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            for run in waited:
                while not run.state.is_settled:
                    await run.wait_news(NEWS_S)
    return [run for run in waited if not run.state.is_settled]
