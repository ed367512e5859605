"""Leases and costs show themselves: escaped, exact, with a chart that needs no network."""

from __future__ import annotations

import json

import msgspec

from jupyter_gpumarket.models import Charge, ChargeKind, LeaseRequest, OfferQuery, Owner
from jupyter_gpumarket.notebook.frames import charges_frame
from jupyter_gpumarket.notebook.reprs import VEGA_LITE, Costs, Leases, costs_of
from tests.notebook.fakes import FakeClient, FakeClock

HOSTILE = "<script>alert(1)</script>"
DAY_MS = 86_400_000


def charges(days: int) -> Costs:
    lines = [
        Charge(
            charge_id=str(day),
            lease_id="l",
            kind=ChargeKind.CELL if day % 2 else ChargeKind.IDLE,
            amount_nusd=123_456_789,
            start_ms=day * DAY_MS,
            end_ms=day * DAY_MS + 1000,
            owner=Owner(user=HOSTILE),
        )
        for day in range(days)
    ]
    return costs_of(charges_frame(lines))


def test_costs_show_an_exact_table_and_then_a_chart_by_day() -> None:
    """The chart's dollars are those of the table; it names no address but its schema's."""
    table, chart = charges(5).bundles()

    assert "$0.617283945" in table["text/plain"]
    assert "$</span>0.617283945" in table["text/html"]
    values = chart[VEGA_LITE]["data"]["values"]
    assert [value["usd"] for value in values] == [0.123457] * 5
    assert json.dumps(chart).count("http") == 1
    assert chart["text/plain"]


def test_no_costs_are_a_table_without_a_chart() -> None:
    """Nothing to draw is nothing drawn."""
    assert len(charges(0).bundles()) == 1


def test_a_frame_made_of_costs_shows_itself_as_frames_do() -> None:
    """Whoever selects columns gets them, not a summary."""
    selected = costs_of(charges(2).select("user"))

    assert "user" in selected.bundles()[0]["text/plain"]


def test_leases_are_a_list_and_a_table_without_markup_of_strangers() -> None:
    """A name is text, in HTML too."""
    client = FakeClient(FakeClock())
    view = client.wish(LeaseRequest(request_id="r", query=OfferQuery(), budget_nusd=10**9, max_s=3600))
    hostile = msgspec.structs.replace(view, lease=msgspec.structs.replace(view.lease, name=HOSTILE))
    leases = Leases([hostile])

    assert leases[0] is hostile
    assert HOSTILE not in leases._repr_html_()
    assert HOSTILE in repr(leases)
    assert "nothing is rented" in repr(Leases([]))
