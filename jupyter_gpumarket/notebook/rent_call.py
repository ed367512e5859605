"""Renting from Python in one call: the wish, and the wait until the node is ready. Its budget is always explicit."""

from __future__ import annotations

import secrets
import time

from jupyter_gpumarket import config
from jupyter_gpumarket.api import LeaseView
from jupyter_gpumarket.client import Client
from jupyter_gpumarket.errors import LeaseFailed
from jupyter_gpumarket.models import ENDED_STATES, LeaseRequest, LeaseState, OfferQuery
from jupyter_gpumarket.money import usd
from jupyter_gpumarket.notebook.identity import owner


def rent_and_wait(
    client: Client, query: OfferQuery, *, budget: str, hours: float, name: str, timeout_s: float
) -> LeaseView:
    """Rent a node and wait until it is ready. Budget in dollars, as text; both limits are hard.

    Raises:
        LeaseFailed: no offer led to a ready node in time. BudgetExceeded: a budget does not cover it.
    """
    view = client.wish(
        LeaseRequest(
            request_id=secrets.token_hex(16),
            query=query,
            budget_nusd=usd(budget),
            max_s=round(hours * 3600),
            owner=owner(config.load_settings(config.folders()).project, {}),
            name=name,
        )
    )
    deadline_s = time.monotonic() + timeout_s
    while view.lease.state is not LeaseState.READY:
        if view.lease.state in ENDED_STATES:
            raise LeaseFailed(f"no node: {view.lease.reason}")
        if time.monotonic() > deadline_s:
            client.release(view.lease.lease_id, reason="not ready in time")
            raise LeaseFailed(f"{view.lease.name} was not ready within {timeout_s:g} s; it is given back")
        view = client.lease(view.lease.lease_id, after_seq=view.seq, wait_s=5.0)
    return view
