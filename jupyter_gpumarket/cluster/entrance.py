"""The way in for a client of the user's own: a port of this machine that leads to the scheduler, and a certificate.

Opened only when a door asks for it, which is for nodes that the user trusts.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import shutil
from pathlib import Path

from cryptography import x509

from jupyter_gpumarket.api import DaskAccess
from jupyter_gpumarket.cluster import dask_plan as plan
from jupyter_gpumarket.cluster.authority import Identity, issue
from jupyter_gpumarket.cluster.fleet_members import Process
from jupyter_gpumarket.cluster.local_door import LocalDoor
from jupyter_gpumarket.cluster.relay import Relay, Target
from jupyter_gpumarket.config import private_folder, write_private

# A certificate that ends sooner is handed out no more; clients that were given it go on with it.
RENEW = dt.timedelta(days=30)


class Entrance:
    """Hands out the way to the scheduler."""

    def __init__(self, folder: Path, relay: Relay) -> None:
        self._folder = folder
        self._relay = relay
        self._door: LocalDoor | None = None
        self._turn = asyncio.Lock()

    async def open(
        self, scheduler: Process, authority: Identity, now: dt.datetime, *, has_dashboard: bool
    ) -> DaskAccess:
        """The way to this scheduler, the same one each time.

        Raises:
            BadRequest: no port on this machine can be had.
        """
        async with self._turn:
            if self._door is None:
                self._door = LocalDoor(self._relay)
            files = certified(self._folder, authority, now)
            port = await self._door.port_to(Target(lease_id=scheduler.lease_id, port=scheduler.port))
            dashboard = ""
            if has_dashboard:
                way = await self._door.port_to(Target(lease_id=scheduler.lease_id, port=scheduler.nanny_port))
                dashboard = f"http://{plan.LOOPBACK}:{way}/status"
        return DaskAccess(
            address=f"tls://{plan.LOOPBACK}:{port}",
            dashboard=dashboard,
            ca=str(files / "ca.pem"),
            cert=str(files / "cert.pem"),
            key=str(files / "key.pem"),
        )

    def close(self) -> None:
        """Close the ports; the files stay, for whoever connects again later."""
        if self._door is not None:
            self._door.close()


def certified(folder: Path, authority: Identity, now: dt.datetime) -> Path:
    """Where a certificate of this authority lies with its key, made when there is none.

    They are never changed once they are there: a client reads them one after the other, whenever it connects. What is
    good no more is taken away.
    """
    places = private_folder(folder / "entrance")
    found = None
    for place in places.iterdir():
        left = _time_left(place, authority, now)
        if left is None or left < dt.timedelta(0):
            shutil.rmtree(place, ignore_errors=True)
        elif left > RENEW:
            found = place
    return found or _issued(places, authority, now)


def _time_left(place: Path, authority: Identity, now: dt.datetime) -> dt.timedelta | None:
    """How much longer the set of files is good; None where it never was, or is another authority's."""
    try:
        if (place / "ca.pem").read_bytes() != authority.certificate or not (place / "key.pem").exists():
            return None
        return x509.load_pem_x509_certificate((place / "cert.pem").read_bytes()).not_valid_after_utc - now
    except (OSError, ValueError):
        return None


def _issued(places: Path, authority: Identity, now: dt.datetime) -> Path:
    own = issue(authority, "door", now)
    draft = private_folder(places / ".draft")
    for name, content in plan.Files(authority=authority.certificate, own=own).named().items():
        write_private(draft / name, content)
    return draft.rename(places / hashlib.sha256(own.certificate).hexdigest()[:16])
