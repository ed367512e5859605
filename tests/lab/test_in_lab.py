"""The sidebar in a real JupyterLab in real Chromium, over a real pool, behind a base URL; the server restarts."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.broker.running import end_processes, until
from tests.lab.running import PATIENCE_MS, Lab, built, lab_in, notebook_in
from tests.pool_fixtures import pools

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(400)]

HOSTILE = '<img src=x onerror="window.harmed = 1"><script>window.harmed = 1</script>'


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A JupyterLab with the front end as it is now, and a pool to rent from."""
    with pools() as start_pool:
        pool = start_pool(hosts=1)
        try:
            folder = tmp_path_factory.mktemp("lab") / "lab"
            with lab_in(folder, pool.home, "--GpuMarketApp.refresh_s=0.5", extension=built()) as running:
                yield running
        finally:
            end_processes(pool.folders)


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which no error may happen; its last sight is kept where GPUMARKET_SCREENSHOTS says."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    one = context.new_page()
    one.set_default_timeout(PATIENCE_MS)
    errors: list[str] = []
    one.on("pageerror", lambda error: errors.append(str(error)))
    yield one
    folder = os.environ.get("GPUMARKET_SCREENSHOTS")
    if folder:
        one.screenshot(path=f"{folder}/in-lab-last.png")
    context.close()
    assert errors == []


def opened(page: Any, lab: Lab, path: str = "lab") -> Any:
    """JupyterLab, and the sidebar in it."""
    page.goto(lab.address(path))
    page.locator('li[data-id="gm-sidebar"]').click()
    return page.locator("#gm-sidebar")


def test_a_cell_is_watched_paid_and_its_node_given_back(page: Any, lab: Lab) -> None:
    """Run a %%gpu cell: badge, card, status bar; a restarted server shows age, then goes on; release; costs; export."""
    notebook_in(lab, "one.ipynb", "%load_ext jupyter_gpumarket", "%%gpu\nprint('on the node')")
    sidebar = opened(page, lab, "lab/tree/one.ipynb")
    sidebar.get_by_role("tab", name=re.compile("Running")).click()
    sidebar.get_by_text("Nothing is rented").wait_for()

    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    badge = page.locator(".gm-Badge")
    badge.filter(has_text=re.compile(r"^\s*\$0\.\d+\s*$")).wait_for()
    card = sidebar.locator("article.gm-Card")
    card.get_by_text("ready", exact=True).wait_for()
    assert card.count() == 1
    assert "…/root/one.ipynb" in card.inner_text() or "one.ipynb" in card.inner_text()
    _status_bar_leads_back(page, sidebar)

    badge.click()
    dialog = page.locator(".jp-Dialog")
    dialog.get_by_text("This is final.").wait_for()
    dialog.get_by_role("button", name="Show its output").click()
    page.locator("pre.gm-Log").get_by_text("on the node").wait_for()

    _survives_a_restart(page, lab, sidebar)
    _asks_before_it_releases(page, sidebar)
    _shows_costs(page, sidebar)
    kept = _saved_metadata(page, lab)
    assert kept["final"]
    assert kept["amount_nusd"] > 0


def _status_bar_leads_back(page: Any, sidebar: Any) -> None:
    status = page.locator(".gm-Status")
    status.filter(has_text=re.compile(r"1 GPU node · \$0\.35/h · \$0\.\d+ today")).wait_for()
    page.locator('li[data-id="filebrowser"]').click()
    sidebar.wait_for(state="hidden")
    status.click()
    sidebar.get_by_role("tab", name=re.compile("Running"), selected=True).wait_for()


def _survives_a_restart(page: Any, lab: Lab, sidebar: Any) -> None:
    lab.stop()
    banner = sidebar.locator(".gm-Banner")
    banner.get_by_text("does not answer").wait_for()
    assert "ago" in banner.inner_text() or "now" in banner.inner_text()
    assert sidebar.locator("article.gm-Card").count() == 1, "what is rented stays in sight"
    lab.start()
    # JupyterLab itself asks what to do about kernels of a server that was away.
    page.add_locator_handler(
        page.locator(".jp-Dialog").filter(has_text=re.compile("Server|Kernel|Directory", re.IGNORECASE)),
        lambda: page.keyboard.press("Escape"),
    )
    banner.wait_for(state="detached")


def _asks_before_it_releases(page: Any, sidebar: Any) -> None:
    card = sidebar.locator("article.gm-Card")
    page.evaluate("void window.jupyterapp.commands.execute('gpumarket:release', {ask: false, force: true})")
    dialog = page.locator(".jp-Dialog").filter(has_text="Give back")
    dialog.get_by_role("button", name="Keep it").click()
    dialog.wait_for(state="detached")
    card.get_by_text("ready", exact=True).wait_for()

    card.get_by_role("button", name="Release…").click()
    dialog.get_by_role("button", name="Release", exact=True).click()
    sidebar.get_by_text("Nothing is rented").wait_for()


def _shows_costs(page: Any, sidebar: Any) -> None:
    sidebar.get_by_role("tab", name="Costs").click()
    sidebar.locator(".gm-Total-amount").filter(has_text=re.compile(r"^\s*\$0\.\d+\s*$")).wait_for()
    with page.expect_download() as saved:
        sidebar.get_by_role("button", name="CSV").click()
    lines = Path(saved.value.path()).read_text("utf-8").splitlines()
    assert lines[0].startswith("charge_id,lease_id,kind")
    assert len(lines) > 2

    sidebar.get_by_role("button", name="Set a budget…").click()
    page.locator('.jp-Dialog input[name="limit"]').fill("25")
    page.locator(".jp-Dialog").get_by_role("button", name="Set", exact=True).click()
    sidebar.locator(".gm-Budget").filter(has_text="of $25.00").wait_for()


def _saved_metadata(page: Any, lab: Lab) -> dict[str, Any]:
    page.evaluate("void window.jupyterapp.commands.execute('docmanager:save-all')")

    def kept() -> Any:
        with contextlib.suppress(ValueError):  # it may be looked at while it is written
            cells = json.loads((lab.root / "one.ipynb").read_text("utf-8"))["cells"]
            return cells[1]["metadata"].get("jupyter_gpumarket")
        return None

    found: dict[str, Any] = until("the notebook is saved", kept, PATIENCE_MS / 1000)
    return found


def test_what_strangers_say_is_text_and_the_tab_survives_a_reload(page: Any, lab: Lab) -> None:
    """Markup in names, regions and reasons is shown as written and runs nothing; a reload keeps the tab."""
    page.route("**/gpumarket/now*", lambda route: route.fulfill(json=_hostile_sight()))
    sidebar = opened(page, lab, "lab/workspaces/strangers")
    sidebar.get_by_role("tab", name=re.compile("Running")).click()
    sidebar.locator("article.gm-Card").nth(1).wait_for()

    assert sidebar.locator(".gm-Tab img, .gm-Tab script").count() == 0
    assert sidebar.get_by_text("<img src=x").count() >= 2
    page.locator(".Toastify, .jp-toastContainer, .jp-Notification").first.wait_for(state="attached")
    assert page.evaluate("window.harmed") is None

    page.wait_for_timeout(1500)  # JupyterLab writes its layout a second after it changed
    page.goto(lab.address("lab/workspaces/strangers"))
    page.locator("#gm-sidebar").get_by_role("tab", name=re.compile("Running"), selected=True).wait_for()


def _hostile_sight() -> dict[str, Any]:
    offer = {"marketplace": HOSTILE, "gpu": HOSTILE, "gpu_raw": "", "gpu_count": 1, "region": HOSTILE, "vram_gib": 80}
    request = {
        "budget_nusd": 10**9,
        "max_s": 60,
        "owner": {"user": HOSTILE, "project": "", "notebook": ""},
        "query": {},
    }
    lease = {
        "lease_id": "l1",
        "name": HOSTILE,
        "state": "booting",
        "request": request,
        "goal": "node",
        "offer": offer,
        "price_nusd_hour": 10**9,
        "deadline_ms": None,
        "billed_from_ms": None,
        "billed_to_ms": None,
        "ready_ms": None,
        "phases": {},
        "attempts": [{"reason": HOSTILE}],
        "reason": HOSTILE,
        "cluster_id": "c1",
        "changed_ms": 0,
    }
    view = {
        "lease": lease,
        "seq": 1,
        "cost_nusd": 0,
        "boot_nusd": 0,
        "idle_nusd": 0,
        "node": None,
        "notices": [HOSTILE],
    }
    orphan = {"marketplace": HOSTILE, "rental_id": HOSTILE, "found_ms": 0, "price_nusd_hour": None, "state": "found"}
    return {
        "at_ms": 1,
        "is_up": True,
        "message": "",
        "leases": [view],
        "orphans": [orphan],
        "budgets": [],
        "rate_nusd_hour": 0,
        "spent_today_nusd": 0,
    }
