"""What a head says of its scheduler, as doors see it."""

from __future__ import annotations

import math

import msgspec
import pytest

from jupyter_gpumarket.api import DaskWorkerView
from jupyter_gpumarket.cluster.fleet_members import Process
from jupyter_gpumarket.cluster.fleet_news import News
from jupyter_gpumarket.wire.messages import DaskStatus, DaskWorkerStatus


@pytest.mark.parametrize("told", [math.nan, math.inf, -1.0])
def test_a_number_that_is_none_breaks_no_view(told: float) -> None:
    """JSON has no such numbers: one of a lying head would keep everybody from looking at the cluster."""
    news = News()
    worker = DaskWorkerStatus(name="w", processing=0, in_memory=0, memory_bytes=0, occupancy_s=told)
    counts = dict.fromkeys(("at_ms", "waiting", "queued", "unrunnable", "processing", "in_memory", "erred"), 0)
    news.take(DaskStatus(**counts, occupancy_s=0.0, workers=(worker,)), 1)
    view = news.worker_view(Process(name="w", lease_id="a", generation=1, port=1, nanny_port=2), None)

    assert 0 <= msgspec.json.decode(msgspec.json.encode(view), type=DaskWorkerView).occupancy_s < math.inf
