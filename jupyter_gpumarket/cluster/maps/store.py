"""All maps of a cluster: on disk, found again after a restart, and fetched from another cluster to be resumed here."""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from pathlib import Path

import msgspec

from jupyter_gpumarket.api import MapRequest, MapState
from jupyter_gpumarket.cluster.maps.live import LiveMap, Site
from jupyter_gpumarket.cluster.maps.records import MapRecord
from jupyter_gpumarket.config import private_folder, write_private
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.mapfiles import OUTCOMES_NAME, PackReader, find_map
from jupyter_gpumarket.wire.mapping import MapReport

logger = logging.getLogger(__name__)

MAP_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_]{0,39}")
MAX_ITEMS = 1_000_000
MAX_CODE_CHARS = 2_000_000


class MapStore:
    """The folder of maps."""

    def __init__(self, folder: Path, site: Site) -> None:
        self._folder = private_folder(folder)
        self._site = site
        self._maps: dict[str, LiveMap] = {}
        for entry in sorted(self._folder.iterdir()):
            if (entry / "state.json").exists():
                self._load(entry)

    def start(self) -> None:
        """Go on with the maps that run."""
        for one in self._maps.values():
            if one.is_running:
                one.start()

    def all(self) -> list[LiveMap]:
        """Every map, oldest first."""
        return sorted(self._maps.values(), key=lambda one: one.record.created_ms)

    def find(self, map_id: str) -> LiveMap | None:
        """The map, or None."""
        return self._maps.get(map_id)

    def create(self, request: MapRequest) -> LiveMap:
        """A new map, on disk and running; or the one that was made from the same request before.

        Raises:
            BadRequest: names the field.
        """
        known = self._maps.get(request.map_id)
        if known is not None:
            if known.request != request:
                raise BadRequest(f"map_id: {request.map_id} was used before for another map; choose a new one")
            return known
        self._check(request)
        now_ms = self._site.clock.now_ms()
        record = MapRecord(state=MapState.RUNNING, seed=secrets.token_hex(16), created_ms=now_ms, began_ms=now_ms)
        folder = private_folder(self._folder / request.map_id)
        write_private(folder / "request.json", msgspec.json.encode(request))
        write_private(folder / "state.json", msgspec.json.encode(record))
        one = self._maps[request.map_id] = LiveMap(folder, request, record, self._site)
        one.start()
        return one

    def resume(self, map_id: str) -> LiveMap | None:
        """Go on with a stopped map; one that another cluster began is fetched first. None: there is none.

        Raises:
            BadRequest: its inputs are not here any more.
        """
        one = self._maps.get(map_id)
        if one is None and (one := self._fetch(map_id)) is None:
            return None
        one.resume()
        return one

    def blobs_in_use(self) -> set[str]:
        """Inputs that maps may still need."""
        return {sha256 for one in self._maps.values() for sha256 in _blobs(one.request)}

    def on_contact(self, lease_id: str) -> None:
        """A conversation with a node's agent begins."""
        for one in self._maps.values():
            one.on_contact(lease_id)

    def on_gone(self, lease_id: str) -> None:
        """A node was let go."""
        for one in self._maps.values():
            one.on_gone(lease_id)

    def on_report(self, lease_id: str, report: MapReport) -> None:
        """What a node says of a map."""
        one = self._maps.get(report.map_id)
        if one is not None:
            one.on_report(lease_id, report)

    async def close(self) -> None:
        """This process ends."""
        for one in self._maps.values():
            await one.close()

    def _load(self, folder: Path) -> LiveMap | None:
        try:
            request = msgspec.json.decode((folder / "request.json").read_bytes(), type=MapRequest)
            record = msgspec.json.decode((folder / "state.json").read_bytes(), type=MapRecord)
            one = LiveMap(folder, request, record, self._site)
        except (OSError, msgspec.MsgspecError, BadRequest) as error:
            logger.warning("the map in %s cannot be read: %s", folder, error)
            return None
        self._maps[request.map_id] = one
        return one

    def _fetch(self, map_id: str) -> LiveMap | None:
        """Copy a map of another cluster, whose nodes are gone, with what it needs."""
        source = find_map(self._folder.parent.parent, map_id) if MAP_ID.fullmatch(map_id) else None
        if source is None:
            return None
        request = msgspec.json.decode((source / "request.json").read_bytes(), type=MapRequest)
        for sha256 in _blobs(request):
            blob = source.parent.parent / "blobs" / sha256
            if not self._site.blobs.has(sha256):
                if not blob.exists():
                    raise BadRequest(f"map_id: the inputs of {map_id} are not kept any more; run it anew")
                _copy(blob, self._site.blobs.path(sha256))
        target = private_folder(self._folder / map_id)
        names = [OUTCOMES_NAME, "request.json"]
        names += [path.name for path in source.iterdir() if path.name.startswith(("result-", "check-"))]
        for name in names:
            if (source / name).exists():
                _copy(source / name, target / name)
        record = msgspec.json.decode((source / "state.json").read_bytes(), type=MapRecord)
        if record.state is MapState.RUNNING:  # its cluster process ended while it ran
            record = msgspec.structs.replace(record, state=MapState.STOPPED, reason="its nodes were given back")
        write_private(target / "state.json", msgspec.json.encode(record))
        return self._load(target)

    def _check(self, request: MapRequest) -> None:
        if not MAP_ID.fullmatch(request.map_id):
            raise BadRequest(f"map_id: {request.map_id[:100]!r} is not a name of at most 40 letters, digits and '_'")
        _check_numbers(request)
        for name in (request.item_name, *(i.name for i in request.inputs)):
            if not name.isidentifier() or len(name) > 200:
                raise BadRequest(f"item_name or inputs: {name[:100]!r} is not the name of a variable")
        for sha256 in _blobs(request):
            if not self._site.blobs.has(sha256):
                raise BadRequest(f"inputs: the bytes of {sha256} are not here; PUT /v1/blobs/{sha256} first")
        if len(PackReader(self._site.blobs.path(request.items_sha256))) != request.count:
            raise BadRequest("count: not the number of items in the blob")


def _check_numbers(request: MapRequest) -> None:
    if not 0 < request.count <= MAX_ITEMS:
        raise BadRequest(f"count: a map has 1 to {MAX_ITEMS:,} items")
    if len(request.code) > MAX_CODE_CHARS:
        raise BadRequest(f"code: longer than {MAX_CODE_CHARS:,} characters")
    if not 0 <= request.verify_ppm <= 1_000_000:
        raise BadRequest("verify_ppm: from 0 to 1000000")
    if request.retries < 0 or request.deaths < 1 or (request.slots is not None and not 0 < request.slots <= 256):
        raise BadRequest("retries, deaths or slots: out of range (slots: 1 to 256)")
    if request.timeout_s is not None and not request.timeout_s > 0:
        raise BadRequest("timeout_s: above 0")


def _blobs(request: MapRequest) -> list[str]:
    return [request.items_sha256, *request.blobs, *(i.sha256 for i in request.inputs)]


def _copy(source: Path, target: Path) -> None:
    """A file's content, whole or not at all."""
    draft = target.with_name(f"{target.name}.{os.urandom(4).hex()}.part")
    shutil.copyfile(source, draft)
    draft.chmod(0o600)
    draft.replace(target)
