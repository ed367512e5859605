"""What the front end reckons by itself, it reckons as the broker does: both read these tables of cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.api import OfferFigures, OfferList
from jupyter_gpumarket.api.columns import columns
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Billing, Offer
from jupyter_gpumarket.offers.grammar import parse
from jupyter_gpumarket.offers.job import Job, Known, job_cost

CASES = Path(__file__).parents[2] / "labextension" / "test"


def cases(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((CASES / name).read_text("utf-8"))
    return found


@pytest.mark.parametrize("case", cases("grammar-cases.json"), ids=lambda case: case["text"])
def test_requests_are_read_alike(case: dict[str, Any]) -> None:
    """The same text means the same memory and count on both sides, or is refused on both."""
    if case.get("refused"):
        with pytest.raises(BadRequest):
            parse(case["text"])
        return
    wish = parse(case["text"])

    low = None if wish.vram_low_gib is None else pytest.approx(wish.vram_low_gib)
    assert case["vram"] == [low, wish.vram_high_gib]
    assert case["count"] == [wish.count_low, wish.count_high]
    assert (case["names"] is None) == (wish.models is None)


@pytest.mark.parametrize("case", cases("job-cases.json"), ids=lambda case: case["what"])
def test_jobs_cost_the_same(case: dict[str, Any]) -> None:
    """Each part of a job's price is the same to the nano-dollar."""
    offer = Offer(
        marketplace="m",
        offer_id="o",
        machine_id="x",
        seen_ms=0,
        price_nusd_hour=case["price_nusd_hour"],
        disk_gib=case["disk_gib"],
        billing=Billing(**case["billing"]),
    )
    job = Job.of(hours=case["hours"], in_gib=case["in_gib"], out_gib=case["out_gib"])
    cost = job_cost(offer, job, Known(boot_s=case["boot_s"]))

    parts = [cost.time_nusd, cost.boot_nusd, cost.storage_nusd, cost.in_nusd, cost.out_nusd, cost.fee_nusd]
    assert parts == case["parts"]


def test_columns_hold_every_offer_and_each_text_once() -> None:
    """Each row reads back as its offer; what repeats is told once; unknown stays unknown."""
    offers = [
        Offer(
            marketplace="a", offer_id=str(i), machine_id="m", price_nusd_hour=i, seen_ms=5, gpu="T4" if i % 2 else None
        )
        for i in range(6)
    ]
    figures = [OfferFigures(boot_s=float(i), note="sample" if i == 3 else "") for i in range(6)]
    made = columns(OfferList(offers=offers, figures=figures, statuses=[]), now_ms=1000)

    assert (made.gpu.names, made.gpu.codes) == (["", "T4"], [0, 1, 0, 1, 0, 1])
    assert made.marketplace.names == ["a"]
    assert made.price_nusd_hour == list(range(6))
    assert [made.note.names[code] for code in made.note.codes].index("sample") == 3
    assert made.reliability == [None] * 6
    assert made.billing.kinds == [Billing()]
