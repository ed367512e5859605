"""What our adapters ask the aggregators, and our stand-ins for them answer, is what their API documents describe."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_gpumarket.simulator.primeintellect import PrimeStandIn
from jupyter_gpumarket.simulator.shadeform import ShadeformStandIn
from jupyter_gpumarket.simulator.web import Call, Reply
from tests.marketplaces import test_primeintellect, test_shadeform
from tests.pool_fixtures import RunningPool, pools
from tests.simulator.documents import Document
from tests.simulator.standing import standing
from tests.simulator.test_documents import whole_life

EXPLAINED_PRIME = {
    ("GET", "/api/v1/pods/{pod_id}", "reply", "status 404"),
    ("DELETE", "/api/v1/pods/{pod_id}", "reply", "status 404"),
}


@pytest.fixture(scope="module")
def running() -> Any:
    with pools() as start:
        yield start(hosts=1)


async def test_prime_speaks_as_its_documents_say(running: RunningPool) -> None:
    """Each request of the adapter and each reply of the stand-in fits Prime's documents, which know no 404."""
    compute = Document("prime-intellect/prime-intellect-compute-api-openapi.yml")
    billing = Document("prime-intellect/derived-billing.yml")

    def observe(call: Call, reply: Reply) -> None:
        (billing if "/billing/" in call.path else compute).observe(call, reply)

    async with standing(
        running,
        PrimeStandIn,
        test_primeintellect.adapter,
        test_primeintellect.is_create,
        test_primeintellect.is_release,
    ) as stand:
        stand.server.observe = observe
        await whole_life(stand)

    assert compute.differences == EXPLAINED_PRIME
    assert billing.differences == set()
    assert len(compute.checked) >= 8


async def test_shadeform_speaks_as_its_document_says(running: RunningPool) -> None:
    """Each request of the adapter and each reply of the stand-in fits the document that there is of Shadeform."""
    document = Document("shadeform/shadeform-openapi.yml", prefix="/v1")
    async with standing(
        running, ShadeformStandIn, test_shadeform.adapter, test_shadeform.is_create, test_shadeform.is_release
    ) as stand:
        stand.server.observe = document.observe
        await whole_life(stand)

    assert document.differences == set()
    assert len(document.checked) >= 7
