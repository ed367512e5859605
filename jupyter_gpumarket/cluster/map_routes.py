"""The HTTP routes of maps."""

from __future__ import annotations

from jupyter_gpumarket.api import MapRequest
from jupyter_gpumarket.cluster.maps.live import LiveMap
from jupyter_gpumarket.cluster.routes import LONGEST_WAIT_S, Handler, NotFoundHere


class MapHandler(Handler):
    """What the routes of one map share."""

    def map_named(self, map_id: str) -> LiveMap:
        one = self.cluster.maps.find(map_id)
        if one is None:
            raise NotFoundHere(f"no map {map_id[:100]!r} is known here")
        return one


class Maps(MapHandler):
    """GET and POST /v1/maps"""

    def get(self) -> None:
        self.answer([one.view() for one in self.cluster.maps.all()])

    def post(self) -> None:
        self.answer(self.cluster.maps.create(self.body(MapRequest)).view(), 202)


class OneMap(MapHandler):
    """GET /v1/maps/{map_id}"""

    def get(self, map_id: str) -> None:
        self.answer(self.map_named(map_id).view())


class MapItems(MapHandler):
    """GET /v1/maps/{map_id}/items?after=N&wait_s=S"""

    async def get(self, map_id: str) -> None:
        one = self.map_named(map_id)
        after = int(self.number("after", 2**53))
        await one.wait_news(after, self.number("wait_s", LONGEST_WAIT_S))
        self.answer(one.news(after))


class StopMap(MapHandler):
    """POST /v1/maps/{map_id}/stop"""

    async def post(self, map_id: str) -> None:
        one = self.map_named(map_id)
        await one.stop("stopped by the user")
        self.answer(one.view())


class ResumeMap(MapHandler):
    """POST /v1/maps/{map_id}/resume"""

    def post(self, map_id: str) -> None:
        one = self.cluster.maps.resume(map_id)
        if one is None:
            raise NotFoundHere(f"no map {map_id[:100]!r} is known, here or in another cluster")
        self.answer(one.view())


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v1/maps", Maps),
    (r"/v1/maps/([^/]+)", OneMap),
    (r"/v1/maps/([^/]+)/items", MapItems),
    (r"/v1/maps/([^/]+)/stop", StopMap),
    (r"/v1/maps/([^/]+)/resume", ResumeMap),
]
