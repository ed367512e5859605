"""The HTTP routes of inputs that lie on this computer already: taken over without being sent."""

from __future__ import annotations

import asyncio
from pathlib import Path

from jupyter_gpumarket.api import LocalBlob
from jupyter_gpumarket.cluster.routes import Handler, NotFoundHere


class BlobFromFile(Handler):
    """POST /v1/blobs/{sha256}/local: take an input from a file of this user."""

    async def post(self, sha256: str) -> None:
        path = Path(self.body(LocalBlob).path)
        size = await asyncio.to_thread(self.cluster.blobs.adopt, sha256, path)
        self.answer({"sha256": sha256, "size": size})


class StageBlob(Handler):
    """POST /v1/nodes/{lease_id}/blobs/{sha256}: bring an input to a node now, not only when a cell needs it."""

    async def post(self, lease_id: str, sha256: str) -> None:
        node = self.node_named(lease_id)
        if not self.cluster.blobs.has(sha256):
            raise NotFoundHere(f"the bytes of {sha256[:100]!r} are not here; PUT /v1/blobs/... first")
        await node.talk.bring_blob(sha256)
        self.answer({})


ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v1/blobs/([^/]+)/local", BlobFromFile),
    (r"/v1/nodes/([^/]+)/blobs/([^/]+)", StageBlob),
]
