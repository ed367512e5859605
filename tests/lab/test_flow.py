"""A lease seen through the browser from its first cell to its report, with everything interrupted on the way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.running import Lab, built, command, lab_in, notebook_in, open_lab, open_notebook, rented, run_all, until
from tests.notebook.test_real import release_everything
from tests.pool_fixtures import RunningPool, pools

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

# Half a cent a second, so that a budget of 50 cents is nearly used up within a test.
PRICE = "18"
BUDGET = "0.50"
CELL = f"""%%gpu --budget {BUDGET}
import time
for n in range(8):
    print("tick", n, flush=True)
    time.sleep(1)
"""
CARD = "#gm-sidebar .gm-Card"


@pytest.fixture(scope="module")
def market() -> Iterator[RunningPool]:
    with pools() as start:
        pool = start(hosts=1, host=("--price", PRICE))
        yield pool
        release_everything(pool)


@pytest.fixture
def own_lab(market: RunningPool, tmp_path: Path) -> Iterator[Lab]:
    with lab_in(tmp_path / "lab", market.home, extension=built()) as running:
        yield running


def cents(text: str) -> float:
    """The amount after "Cost so far" on a card."""
    found = re.search(r"Cost so far\s+\$([0-9.]+)", text)
    assert found, text
    return float(found[1])


def test_a_lease_is_watched_warned_of_and_given_back(browser: Any, own_lab: Lab, market: RunningPool) -> None:
    """The cost ticks; a second window, a reload and a server restart show the same node; 80 % of the budget is told; it
    is given back by its card, as the market confirms; the report has what it cost.
    """
    name = notebook_in(own_lab, "flow.ipynb", "%load_ext jupyter_gpumarket", CELL)
    first = open_notebook(browser, own_lab, name)
    run_all(first)
    command(first, "gpumarket:open-running")
    card = first.locator(CARD)
    card.get_by_text("ready", exact=True).wait_for()
    node = card.get_attribute("aria-label")

    before = cents(card.inner_text())
    until("the cost has ticked", lambda: cents(card.inner_text()) > before)
    outputs = first.locator(".jp-OutputArea-output")
    until("the cell has ended", lambda: "tick 7" in "".join(outputs.all_inner_texts()))

    second = open_lab(browser, own_lab)
    command(second, "gpumarket:open-running")
    second.locator(CARD).get_by_text("ready", exact=True).wait_for()
    first.reload()
    command(first, "gpumarket:open-running")
    first.locator(CARD).get_by_text("ready", exact=True).wait_for()
    assert {page.locator(CARD).get_attribute("aria-label") for page in (first, second)} == {node}
    first.context.close()

    lost = second.locator(".jp-Dialog", has_text="Server Connection Error")
    second.add_locator_handler(lost, lost.get_by_role("button").last.click)
    own_lab.stop()
    own_lab.start()
    second.get_by_text(re.compile("has used 80 % of its budget")).first.wait_for()
    seen = cents(second.locator(CARD).inner_text())
    assert seen > 0.8 * float(BUDGET) - 0.02

    second.locator(CARD).get_by_role("button", name="Release").click()
    dialog = second.locator(".jp-Dialog", has_text="Give back")
    assert node in dialog.inner_text()
    dialog.locator(".jp-mod-warn").click()
    until("the market has it back", lambda: rented(market) == 0)
    second.locator(CARD).wait_for(state="detached")
    command(second, "gpumarket:open-costs")
    total = second.locator("#gm-sidebar .gm-Total-amount")
    until("the report has it", lambda: float(total.inner_text().strip("$") or 0) >= seen)
    second.context.close()
