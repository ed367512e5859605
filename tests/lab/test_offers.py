"""Offers in a real Chromium, from a real JupyterLab and Notebook 7, rented from a real pool on this machine."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.running import end_processes, until
from tests.lab.running import Lab, built, lab_in, notebook_in, open_lab, open_sidebar, until_ready
from tests.pool_fixtures import RunningPool, pools

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PATIENCE_MS = 120_000


@pytest.fixture(scope="module")
def pool() -> Iterator[RunningPool]:
    """Two hosts at different prices; the name of one is a payload."""
    with pools() as start:
        # On a busy machine a host may be silent for a while; its offer must not vanish under the test.
        pool = start(hosts=0, registry=("--lost-after", "120"))
        pool.add_host(price="0.35")
        pool.add_host("--name", HOSTILE, price="0.70")
        yield pool
        end_processes(pool.folders)


@pytest.fixture(scope="module")
def lab(pool: RunningPool) -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(prefix="gl", dir="/tmp", ignore_cleanup_errors=True) as folder,
        lab_in(Path(folder) / "lab", pool.home, extension=built()) as lab,
    ):
        yield lab


def rented(pool: RunningPool) -> int:
    return len([one for one in pool.api("GET", "/v1/rentals").json()["rentals"] if one["status"] != "gone"])


def says(dialog: Any, words: str) -> None:
    """Wait until the dialog says so; else show what it says."""
    try:
        dialog.get_by_text(words).wait_for(timeout=PATIENCE_MS)
    except Exception:
        pytest.fail(dialog.inner_text())


def test_a_student_finds_rents_and_gives_back(browser: Any, lab: Lab, pool: RunningPool) -> None:
    """By slider, search and click to an offer; keys and a cancelled dialog rent nothing; rent, ready, give back."""
    page = open_lab(browser, lab)
    panel = open_sidebar(page, 260)
    lines = panel.locator(".gm-Offers-list .gm-Line")
    lines.nth(1).wait_for()
    assert lines.count() == 2
    assert "$0.35/h" in lines.first.inner_text()

    # A slider: everything above 50 cents goes; a reload keeps that.
    panel.get_by_role("slider", name="Highest price an hour").fill("19")
    lines.nth(1).wait_for(state="detached")
    page.reload()
    panel = open_sidebar(page)
    lines = panel.locator(".gm-Offers-list .gm-Line")
    lines.first.wait_for()
    assert lines.count() == 1
    panel.get_by_role("button", name="Clear").click()
    lines.nth(1).wait_for()
    panel.get_by_role("searchbox").fill("no such thing")
    panel.get_by_text("No offer passes all filters").wait_for()
    panel.get_by_role("searchbox").fill("")

    # A stranger's name is text; the keyboard alone leads to the dialog, and Enter held down in it rents nothing.
    lines.nth(1).click()
    assert HOSTILE in panel.locator(".gm-Facts").inner_text()
    page.keyboard.press("Escape")
    panel.locator(".gm-Offers-list:focus").wait_for()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    panel.get_by_role("button", name="Rent…").focus()
    page.keyboard.press("Enter")
    dialog = page.locator("dialog.gm-Dialog")
    dialog.get_by_label("Budget, dollars").wait_for()
    for _ in range(5):
        page.keyboard.press("Enter")
    dialog.get_by_label("Budget, dollars").fill("1,50")
    dialog.locator("button[data-kind=main]:disabled").wait_for()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert rented(pool) == 0

    panel.get_by_role("button", name="Rent…").click()
    dialog.get_by_label("Budget, dollars").fill("0.20")
    dialog.get_by_text("The budget is used up after about 34 min").wait_for()
    dialog.get_by_role("button", name=re.compile("^Rent for")).click()
    says(dialog, "Put %%gpu at the top of a cell")
    phases = dialog.locator(".gm-Phases li").all_inner_texts()
    assert [phase.split()[1] for phase in phases] == ["quote", "contract", "boot", "link", "set-up", "probe", "ready"]
    assert rented(pool) == 1
    dialog.get_by_role("button", name="Cancel and give back").click()
    says(dialog, "given back, confirmed")
    until("the pool has no rental", lambda: rented(pool) == 0, 30)
    assert page.problems == []
    page.context.close()


@pytest.mark.parametrize("where", ["lab/tree", "notebooks"], ids=["JupyterLab", "Notebook 7"])
def test_the_picker_lives_in_a_notebook(browser: Any, lab: Lab, where: str) -> None:
    """What is set in the page is in Python, and the other way round; `rent()` without a budget asks in the page."""
    name = f"picker-{where.replace('/', '-')}.ipynb"
    notebook_in(
        lab,
        name,
        "import jupyter_gpumarket as gm\npicker = gm.OfferPicker(max_price='0.50', height_px=520)\npicker",
        "print('page says', picker.filters['text'], picker.selected and picker.selected.price_nusd_hour)",
        "picker.filters = {'max_price': '5'}",
        "picker.rent()",
    )
    page = open_lab(browser, lab, f"{where}/{name}")
    if where.startswith("lab"):  # Notebook 7 gives tests nothing to ask
        until_ready(page)
    picker = page.locator(".gm-Picker")

    def run(cell: int) -> None:
        page.locator(".jp-Notebook .jp-Cell .cm-content").nth(cell).click()
        page.keyboard.press("Shift+Enter")

    run(0)
    lines = picker.locator(".gm-Offers-list .gm-Line")
    lines.first.wait_for()
    assert lines.count() == 1
    picker.get_by_role("searchbox").fill("eu-lab")
    lines.first.click()
    picker.locator(".gm-Details").wait_for()
    run(1)
    page.get_by_text("page says eu-lab 350000000").wait_for()
    run(2)
    lines.nth(1).wait_for()
    assert picker.get_by_role("searchbox").input_value() == ""
    run(3)
    dialog = page.locator("dialog.gm-Dialog")
    assert dialog.get_by_label("Hours at most").input_value() == "1"
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    # Notebook 7 itself complains of extensions that are made for JupyterLab alone.
    assert [problem for problem in page.problems if "gpumarket" in problem or where.startswith("lab")] == []
    page.context.close()
