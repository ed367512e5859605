"""What one kernel (or IPython terminal) knows: its client, its nodes, and on whose behalf it asks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn

from jupyter_gpumarket import config
from jupyter_gpumarket.api import LeaseView, sight_of
from jupyter_gpumarket.client import Client, ClusterClient, connect
from jupyter_gpumarket.clock import Clock, SystemClock
from jupyter_gpumarket.config import Settings
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import ENDED_STATES, Lease, Owner
from jupyter_gpumarket.notebook.data import DataStore
from jupyter_gpumarket.notebook.identity import owner


class Notebook:
    """This notebook's side of things. A node once used is used again; after a kernel restart it is found by owner."""

    def __init__(
        self,
        namespace: Mapping[str, Any],
        *,
        connect: Callable[[], Client] = connect,
        settings: Callable[[], Settings] = lambda: config.load_settings(config.folders()),
        clock: Clock | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.namespace = namespace
        self.clock = clock or SystemClock()
        self.pause = pause
        self.last_run_id = ""
        self._connect = connect
        self._settings = settings
        self._client: Client | None = None
        self._clusters: dict[str, ClusterClient] = {}
        self._mine: list[str] = []
        self._used: set[str] = set()
        self._told: set[tuple[str, str]] = set()
        self._seen: list[LeaseView] = []

    @property
    def client(self) -> Client:
        """The broker's client; a broker is started when none runs."""
        if self._client is None:
            self._client = self._connect()
        return self._client

    def data(self) -> DataStore:
        """Where large inputs are kept on this side."""
        return DataStore(self.client.folders)

    @property
    def settings(self) -> Settings:
        """The user's settings, read anew so that an edit counts at once."""
        return self._settings()

    def owner(self, project: str = "") -> Owner:
        """For whom this notebook asks."""
        return owner(project or self.settings.project, self.namespace)

    def cluster(self, lease_id: str) -> ClusterClient:
        """The cluster process of a lease."""
        if lease_id not in self._clusters:
            self._clusters[lease_id] = self.client.cluster(lease_id)
        return self._clusters[lease_id]

    def use(self, lease_id: str) -> None:
        """From now on this node is the notebook's current one."""
        if lease_id in self._mine:
            self._mine.remove(lease_id)
        self._mine.append(lease_id)
        self._used.add(lease_id)

    def forget(self, lease_id: str) -> None:
        """The node was given back."""
        if lease_id in self._mine:
            self._mine.remove(lease_id)
        self._clusters.pop(lease_id, None)
        self._seen = [view for view in self._seen if view.lease.lease_id != lease_id]

    def lost(self) -> Lease | None:
        """The node that this kernel used last, when it has ended since; told once."""
        if not self._mine:
            return None
        lease = self.client.lease(self._mine[-1]).lease
        if is_usable(lease):
            return None
        self.forget(lease.lease_id)
        return lease

    def fresh_notices(self, view: LeaseView) -> list[str]:
        """What the broker has to say about a node (a budget that runs out, say) and has not been shown yet."""
        fresh = [notice for notice in view.notices if (view.lease.lease_id, notice) not in self._told]
        self._told.update((view.lease.lease_id, notice) for notice in fresh)
        return fresh

    @property
    def sight(self) -> str:
        """How this kernel saw the open leases last."""
        return sight_of((view.lease.lease_id, view.seq, view.notices) for view in self._seen)

    def leases(self, *, with_nodes: bool = True, as_seen: bool = False) -> list[LeaseView]:
        """This notebook's open leases, the one to use first. Without nodes it is quicker.

        `as_seen`: as they were seen last, without asking. Whoever acts on that tells the broker `sight`.
        """
        own = self.owner()
        if not as_seen:
            self._seen = self.client.leases(nodes=with_nodes)
        views = [view for view in self._seen if is_usable(view.lease)]
        mine = [view for view in views if self._is_mine(view.lease, own)]
        # What this kernel used last comes first; what only the owner tells (after a restart) newest first.
        order = {lease_id: place for place, lease_id in enumerate(self._mine)}
        return sorted(mine, key=lambda view: (-order.get(view.lease.lease_id, -1), -view.lease.created_ms))

    def named(self, name: str) -> LeaseView:
        """An open lease by name or id.

        Raises:
            BadRequest: there is none; names the nearest.
        """
        views = [view for view in self.client.leases() if is_usable(view.lease)]
        for view in views:
            if name in (view.lease.name, view.lease.lease_id):
                return view
        known = [view.lease.name for view in views]
        near = get_close_matches(name, known, n=3, cutoff=0.4) or known[:5]
        hint = f"running: {', '.join(near)}" if near else "no node is running"
        raise BadRequest(f"no node is called {name!r}; {hint}")

    def known(self, name: str | None = None) -> LeaseView:
        """A lease, open or ended: the named one, else this notebook's current one, else its last.

        Raises:
            BadRequest: there is none.
        """
        if name is None and (current := self.leases()):
            return current[0]
        own = self.owner()
        views = sorted(self.client.leases(all=True), key=lambda view: view.lease.created_ms)
        for view in reversed(views):
            if name in (view.lease.name, view.lease.lease_id) or (name is None and self.was_mine(view.lease, own)):
                return view
        return self.named(name) if name else _refuse_without_node()

    def was_mine(self, lease: Lease, own: Owner | None = None) -> bool:
        """Whether a lease, open or ended, was used or asked for here."""
        return lease.lease_id in self._used or self._is_mine(lease, own or self.owner())

    def _is_mine(self, lease: Lease, own: Owner) -> bool:
        if lease.lease_id in self._mine:
            return True
        asked_by = lease.request.owner
        return bool(own.notebook) and (asked_by.notebook, asked_by.user) == (own.notebook, own.user)


def _refuse_without_node() -> NoReturn:
    raise BadRequest("this notebook has had no node yet; `%gpu status --all` shows those of others")


def is_usable(lease: Lease) -> bool:
    """Whether a cell may still be sent there: not ended, and not on its way out."""
    return lease.state not in ENDED_STATES and lease.state not in ("draining", "releasing", "release_unconfirmed")
