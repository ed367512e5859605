"""The HTTP routes of the user's own modules and packages: say what is wanted, and wait until the nodes have it."""

from __future__ import annotations

import asyncio

from jupyter_gpumarket.api import (
    CodeNode,
    CodeWish,
    NodeSystem,
    PackageLook,
    PackagePin,
    PackagesFound,
    PackageThere,
    PackageWish,
)
from jupyter_gpumarket.cluster.code import view_of
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.routes import Handler
from jupyter_gpumarket.errors import NodeError, Unreachable


class CodeHandler(Handler):
    """What these routes share."""

    def ready(self) -> list[Node]:
        """Nodes on which something can run, now or when their link is back."""
        return [node for node in self.cluster.attached().values() if node.is_ready]

    async def bring(self) -> list[CodeNode]:
        """Have every ready node look, and wait for all of them. Others are brought there as they come."""
        for node in self.cluster.attached().values():
            node.code.look_again()
        return list(await asyncio.gather(*(node.code.settled() for node in self.ready())))


class WantedCode(CodeHandler):
    """GET and PUT /v1/code"""

    def get(self) -> None:
        nodes = [node.code.view() for node in self.cluster.attached().values()]
        self.answer(view_of(self.cluster.code, nodes))

    async def put(self) -> None:
        await asyncio.to_thread(self.cluster.code.want_files, self.body(CodeWish))
        self.answer(view_of(self.cluster.code, await self.bring()))


class WantedPackages(CodeHandler):
    """PUT /v1/packages"""

    async def put(self) -> None:
        wish = self.body(PackageWish)
        before = self.cluster.code.record.packages
        self.cluster.code.want_packages(wish)
        nodes = await self.bring()
        if any(node.state == "failed" for node in nodes):
            # A node to come must not fail by what none could have; what is there already stays where it is.
            self.cluster.code.unwant_packages(wish, before)
            for node in self.cluster.attached().values():
                node.code.look_again()
        self.answer(view_of(self.cluster.code, nodes))


class LookForPackages(CodeHandler):
    """POST /v1/packages/look"""

    async def post(self) -> None:
        pins = self.body(PackageLook).packages
        found = await asyncio.gather(*(self._on(node, pins) for node in self.ready()))
        there = tuple(one for packages, _ in found for one in packages)
        self.answer(PackagesFound(there=there, systems=tuple(system for _, system in found)))

    async def _on(self, node: Node, pins: tuple[PackagePin, ...]) -> tuple[tuple[PackageThere, ...], NodeSystem]:
        try:
            return await node.packages_there(pins)
        except Unreachable as error:
            raise NodeError(f"{node.record.attach.name} cannot be asked for its packages now: {error}") from None


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v1/code", WantedCode),
    (r"/v1/packages", WantedPackages),
    (r"/v1/packages/look", LookForPackages),
]
