"""The extension as Jupyter Server knows it: settings, and what is started and stopped with the server."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from jupyter_server.extension.application import ExtensionApp
from traitlets import Bool, Float, Unicode

from jupyter_gpumarket import config
from jupyter_gpumarket.api import OfferColumns, OfferList
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.server import dashboard_pages, fanout
from jupyter_gpumarket.server.dashboards import Dashboards
from jupyter_gpumarket.server.door import Door
from jupyter_gpumarket.server.events import Bus
from jupyter_gpumarket.server.handlers import rules
from jupyter_gpumarket.server.metrics import show
from jupyter_gpumarket.server.now import Now
from jupyter_gpumarket.server.routes import PREFIX, ROUTES, Route
from jupyter_gpumarket.server.sight import Notice, Sight
from jupyter_gpumarket.server.watch import Eyes, Pace, Watch

# An age is told some milliseconds after it was taken; a list is another one when it is younger than that.
SAME_LIST_MS = 1000
HOME_VARIABLE = config.ENVIRONMENT_PREFIX + "HOME"


class GpuMarketApp(ExtensionApp):
    """GPUs by the hour in Jupyter: routes under /gpumarket, passed on to the broker that rents them."""

    name = "jupyter_gpumarket"
    description = "Routes under /gpumarket, passed on to the broker that rents GPUs."
    extension_url = PREFIX

    home = Unicode(
        "",
        help="One folder for the broker's state and settings. The kernels of this server then use the same. "
        f"Empty: what the environment variable {HOME_VARIABLE} says, else Jupyter's own data and config folders.",
    ).tag(config=True)
    start_broker = Bool(
        default_value=False,
        help="Start the broker together with the server. By default it is started by the first request that needs it, "
        "and ends by itself when nothing is rented and nobody has asked for a while.",
    ).tag(config=True)
    start_timeout_s = Float(
        15.0, help="How long to wait for a broker that was started, in seconds, before a request is answered with 503."
    ).tag(config=True)
    refresh_s = Float(
        2.0,
        min=0.2,
        help="How often to look for changes to tell open pages, in seconds, while somebody uses them. While something "
        "is rented and nobody looks, five times more seldom.",
    ).tag(config=True)
    used_s = Float(
        120.0,
        min=1.0,
        help="For how long after the last request of a page the server goes on looking for changes, in seconds, when "
        "nothing is rented.",
    ).tag(config=True)

    _door: Door | None = None
    _watch: Watch | None = None
    _watching: Door | None = None
    _starting: asyncio.Task[None] | None = None
    _offers_as_of_ms = 0

    def initialize_settings(self) -> None:
        """Jupyter's hook: kernels shall find the same broker as the pages do, and this server."""
        if self.home:
            os.environ[HOME_VARIABLE] = str(Path(self.home).expanduser().absolute())
        # Where a link in a notebook leads back to this server, whatever name the browser knows it by.
        os.environ[config.BASE_URL_VARIABLE] = self.serverapp.base_url

    def initialize_handlers(self) -> None:
        """Jupyter's hook: routes, event schemas, figures."""
        self._bus = Bus(self.serverapp.event_logger)
        self._door = Door(home=self.home, timeout_s=self.start_timeout_s, start=True)
        self.handlers.extend(dashboard_pages.rules(Dashboards(self._door)))
        self.handlers.extend(rules(self._door, ROUTES, self._used))

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:  # noqa: ARG002 -- Jupyter's signature
        """Jupyter's hook, once the event loop runs."""
        if self.start_broker:
            self._starting = asyncio.create_task(self._start_now())

    async def stop_extension(self) -> None:
        """Jupyter's hook at the server's end. The broker and all leases go on."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._watch is not None:
            await self._watch.aclose()
        for door in (self._door, self._watching):
            if door is not None:
                await fanout.close(door)
                await door.aclose()

    async def _start_now(self) -> None:
        assert self._door is not None
        try:
            info = await self._door.call(lambda broker: broker.health())
        except GpuMarketError as error:
            self.log.warning("jupyter_gpumarket: the broker could not be started: %s", error)
        else:
            self.log.info("jupyter_gpumarket: the broker runs (pid %s)", info.pid)

    def _used(self, route: Route, answer: Any) -> None:
        if (isinstance(answer, Now) and not (answer.leases or answer.orphans)) or isinstance(answer, fanout.FanOut):
            # Every open page asks these from time to time; that alone must not keep a broker that nobody needs.
            return
        if self._watch is None:
            self._watch = self._new_watch()
        if self._watching is not None and answer is not None:
            self._watching.forget_failure()
        self._watch.used(look_now=route.changes, answered=answer is not None)
        if isinstance(answer, OfferList | OfferColumns):
            self._offers_seen(answer)

    def _offers_seen(self, found: OfferList | OfferColumns) -> None:
        """Tell that the list is fresher; not that it was read, or two pages would call each other for ever."""
        ages_s = [status.age_s for status in found.statuses if status.ok]
        if not ages_s:
            return
        as_of_ms = time.time_ns() // 1_000_000 - int(min(ages_s) * 1000)
        if as_of_ms - self._offers_as_of_ms > SAME_LIST_MS:
            self._offers_as_of_ms = as_of_ms
            self._bus.tell(Notice(topic="offers", data={"as_of_ms": as_of_ms}))

    def _new_watch(self) -> Watch:
        self._watching = door = Door(home=self.home, timeout_s=self.start_timeout_s, start=False)
        eyes = Eyes()

        async def look(before: Sight | None) -> Sight:
            return await door.call(lambda broker: eyes.look(broker, before))

        pace = Pace(refresh_s=self.refresh_s, used_s=self.used_s)
        return Watch(look, tell=self._bus.tell, seen=show, pace=pace)
