"""The last moments of a node: what its cells have declared as outputs is brought over before it goes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster.runs import Run, RunStore
from jupyter_gpumarket.cluster.talk import Talk
from jupyter_gpumarket.models import Notice

logger = logging.getLogger(__name__)

NEWS_S = 0.5
# So long before a node is taken away, cells with declared outputs are interrupted for them.
FAREWELL_S = 10.0


class Farewell:
    """One node's: planned when somebody has said that it ends, or said at once when it is given back."""

    def __init__(
        self, lease_id: str, talk: Talk, runs: RunStore, clock: Clock, *, is_heard: Callable[[], bool]
    ) -> None:
        self._lease_id = lease_id
        self._talk = talk
        self._runs = runs
        self._clock = clock
        self._is_heard = is_heard
        self._planned: asyncio.Task[None] | None = None

    def plan(self, notice: Notice | None) -> None:
        """Bring declared outputs over shortly before somebody takes the node, in place of what was planned before.

        Not at a deadline of our own: whoever gives the node back then asks for `save` first.
        """
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None
        if notice is not None and notice.source != "deadline":
            self._planned = asyncio.create_task(self._say(notice))

    async def save(self, timeout_s: float, reason: str) -> None:
        """Bring over what cells have declared as outputs, as far as that goes in this time."""
        if timeout_s <= 0 or not self._is_heard():
            return
        runs = self._runs.of_node(self._lease_id)
        for run in await save_outputs(runs, self._talk, timeout_s=timeout_s, reason=reason):
            logger.warning("node %s: the outputs of %s did not come in time", self._lease_id, run.run_id)

    async def _say(self, notice: Notice) -> None:
        left_s = max(0.0, notice.ends_ms - self._clock.now_ms()) / 1000
        save_s = left_s if notice.source == "node" else min(FAREWELL_S, left_s / 2)
        await asyncio.sleep(left_s - save_s)
        await self.save(save_s, notice.reason)


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
