"""Inputs on the node: pieces put together by content hash."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.wire.bulk import TakeBlob
from jupyter_gpumarket.wire.messages import BlobStored, PutBlob


class Blobs:
    """The blobs of a lease's folder."""

    def __init__(self, folder: NodeFolder) -> None:
        self._folder = folder
        # sha256 -> bytes so far and their hash.
        self._growing: dict[str, tuple[int, Any]] = {}

    def put(self, order: PutBlob) -> BlobStored | None:
        """Take a piece; the answer once the blob is whole, or when it cannot become so.

        Raises:
            BadRequest: the hash is none.
        """
        target = self._folder.blob(order.sha256)
        if target.exists():
            return BlobStored(sha256=order.sha256) if order.last else None
        if order.offset == 0:
            self._growing[order.sha256] = (0, hashlib.sha256())
        size, digest = self._growing.get(order.sha256, (0, None))
        if digest is None or order.offset != size:
            return self._refuse(order, f"a piece at {order.offset} came where {size} was expected: send it anew from 0")
        draft = target.with_suffix(".part")
        try:
            with draft.open("r+b" if size else "wb") as file:
                file.seek(size)
                file.write(order.data)
        except OSError as error:
            return self._refuse(order, f"the node cannot keep the input: {error.strerror}")
        digest.update(order.data)
        self._growing[order.sha256] = (size + len(order.data), digest)
        if not order.last:
            return None
        del self._growing[order.sha256]
        if digest.hexdigest() != order.sha256:
            return self._refuse(order, "the input arrived with another hash than announced")
        draft.replace(target)
        return BlobStored(sha256=order.sha256)

    def take(self, order: TakeBlob) -> BlobStored:
        """Keep a blob whose bytes came beside the channel; blocks for as long as hashing takes.

        Raises:
            BadRequest: the hash is none.
        """
        target = self._folder.blob(order.sha256)
        if target.exists():
            return BlobStored(sha256=order.sha256)
        source = target.with_suffix(".in")
        try:
            with source.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                found = order.sha256 if order.is_checked else hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return BlobStored(sha256=order.sha256, error=f"the node cannot read the input: {error.strerror}")
        if size != order.size or found != order.sha256:
            if size >= order.size:
                source.unlink(missing_ok=True)
            return BlobStored(sha256=order.sha256, error="the input is not whole, or has another hash than announced")
        source.replace(target)
        return BlobStored(sha256=order.sha256)

    def _refuse(self, order: PutBlob, reason: str) -> BlobStored:
        self._growing.pop(order.sha256, None)
        self._folder.blob(order.sha256).with_suffix(".part").unlink(missing_ok=True)
        return BlobStored(sha256=order.sha256, error=reason)
