"""Every view in every theme and at both widths: accessible by axe-core, inside of its width, and kept as a picture; and
a fan-out, of which the views have most to tell, followed in them to its end.

The pictures go to the folder that GPUMARKET_PICTURES names, and else to the test's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.running import Lab, command, notebook_in, open_notebook, rented, run_all, until, widen
from tests.pool_fixtures import RunningPool

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

THEMES = ("JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast")
WIDTHS = (250, 800)
VIEWS = ("offers", "running", "costs")
SIDEBAR = "#gm-sidebar"
OVERFLOW = """
() => {
  const side = document.querySelector('#gm-sidebar');
  const wide = [...side.querySelectorAll('*')].filter(e => {
    const style = getComputedStyle(e);
    const cut = ['auto', 'scroll', 'hidden', 'clip'].includes(style.overflowX);
    return e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1 && !cut;
  });
  const out = side.getBoundingClientRect().right + 1;
  const controls = [...side.querySelectorAll('button, input, select, a')];
  const beyond = controls.filter(e => e.getBoundingClientRect().right > out);
  return [...new Set([...wide, ...beyond].map(e => `${e.tagName}.${e.className}`))];
}
"""


CREW = "%gpu cluster 2 --gpu none --budget 6 --name crew --threads 1 --yes"
# Long enough for all looks at it; one item fails.
TRIALS = """%%gpu --map trial=range(3000) -o found --detach
import time
time.sleep(0.2)
1 / (trial - 3)
"""


@pytest.fixture(scope="module")
def page(browser: Any, lab: Lab) -> Iterator[Any]:
    """A notebook that has rented a cluster of two nodes, on which a map goes on."""
    name = notebook_in(lab, "views.ipynb", "%load_ext jupyter_gpumarket", CREW, TRIALS)
    opened = open_notebook(browser, lab, name)
    run_all(opened)
    command(opened, "gpumarket:open-running")
    opened.locator(".gm-Map").get_by_text("1 failed").wait_for(timeout=240_000)
    yield opened
    opened.context.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("GPUMARKET_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(page: Any, view: str, theme: str, width: int) -> None:
    """Open a view, and wait until it shows what it has."""
    command(page, "apputils:change-theme", {"theme": theme})
    page.wait_for_selector(f"body[data-jp-theme-name='{theme}']", state="attached")
    command(page, f"gpumarket:open-{view}")
    widen(page, width)
    page.wait_for_selector(f"{SIDEBAR} [role=tabpanel]:visible")
    page.wait_for_function(f"() => document.querySelector('{SIDEBAR} [aria-busy=true]') === null")
    page.wait_for_timeout(400)  # a moment for sizes to settle, before a picture is taken


def violations(page: Any, within: str = SIDEBAR) -> dict[str, Any]:
    """What axe-core finds wrong there, by rule."""
    return {
        one["id"]: [(node["html"][:160], node["failureSummary"][:300]) for node in one["nodes"][:3]]
        for one in axe.Axe().run(page, context=within).response["violations"]
    }


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_accessible_in_every_theme_and_width(page: Any, pictures: Path, view: str) -> None:
    """axe-core finds no violation in the sidebar, and nothing sticks out of it."""
    found: dict[str, Any] = {}
    for theme in THEMES:
        for width in WIDTHS:
            shown(page, view, theme, width)
            page.screenshot(path=str(pictures / f"{view}-{width}-{theme.replace(' ', '-').lower()}.png"))
            found |= {f"{theme} {width} {name}": places for name, places in violations(page).items()}
            if wide := page.evaluate(OVERFLOW):
                found[f"{theme} {width} too wide"] = wide

    assert found == {}


def test_a_button_without_a_name_would_be_found(page: Any) -> None:
    """Control: the look above can fail."""
    shown(page, "costs", THEMES[0], WIDTHS[1])
    page.evaluate(f"() => document.querySelector('{SIDEBAR}').append(document.createElement('button'))")

    assert "button-name" in violations(page)
    page.evaluate(f"() => document.querySelector('{SIDEBAR} > button:last-child').remove()")


def test_a_fan_out_is_watched_sized_stopped_and_given_back(page: Any, market: RunningPool, pictures: Path) -> None:
    """The sidebar tells of Dask, the map and why; no argument of a command skips its question; what is asked for is
    done: the map is stopped, one node less is kept, the cluster is given back and the pool has both nodes again.
    """
    command(page, "gpumarket:open-running")
    crew = page.locator(".gm-Cluster").filter(has_text="Cluster crew")
    text = until("Dask runs", lambda: crew.inner_text() if "Dask runs" in crew.inner_text() else "")
    assert re.search(r"2 ready, asked for: 2 nodes", text)
    assert re.search(r"Workers\s+2\s+Threads\s+2", text)
    assert re.search(r"Rate\s+\$0\.\d+/h\s+Cost so far\s+\$0\.\d+", text)
    assert re.search(r"\$0\.\d+ of \$6\.00", text)
    assert crew.locator("article[data-lease]").count() == 2
    _tells_progress(crew.locator(".gm-Map"))
    _tells_why(page, crew)
    page.screenshot(path=str(pictures / "fanout-why.png"))
    _stops(page, crew)
    _scales(page, crew, market)
    _gives_back(page, crew, market)


def _tells_progress(card: Any) -> None:
    bar = card.get_by_role("progressbar")
    before = int(bar.get_attribute("aria-valuenow"))
    until("it goes on", lambda: int(bar.get_attribute("aria-valuenow")) > before)
    assert re.search(r"1 failed · \d+ at work on 2 nodes · [\d.]+/s · .+ left · \$0\.\d+ so far", card.inner_text())


def _tells_why(page: Any, crew: Any) -> None:
    summary = crew.locator(".gm-Why summary")
    assert "as it is" in summary.inner_text() or "rent 2 nodes" in summary.inner_text()
    summary.focus()
    page.keyboard.press("Enter")  # as without a mouse
    until("all are shown", lambda: "rent 2 nodes" in crew.locator(".gm-Why ol").inner_text())


def _asked(page: Any, name: str, args: dict[str, Any], title: str) -> Any:
    """The dialog that a command opens, after it was opened and called off once: nothing may have come of that."""
    for turn in range(2):
        page.evaluate("([name, args]) => void window.jupyterapp.commands.execute(name, args)", [name, args])
        dialog = page.locator(".jp-Dialog").filter(has_text=title)
        dialog.wait_for()
        if turn == 0:
            page.keyboard.press("Escape")
            dialog.wait_for(state="detached")
    return dialog


def _stops(page: Any, crew: Any) -> None:
    card = crew.locator(".gm-Map")
    dialog = _asked(page, "gpumarket:stop-map", {"force": True, "ask": False}, "Stop map")
    assert "runs" in card.locator(".gm-State").inner_text()
    dialog.get_by_role("button", name="Stop map").click()
    card.get_by_text("stopped; it can be resumed").wait_for()


def _scales(page: Any, crew: Any, market: RunningPool) -> None:
    args = {"cluster": "crew", "minimum": 1, "maximum": 2, "maxPrice": "0.75", "force": True}
    dialog = _asked(page, "gpumarket:adapt-cluster", args, "Adapt cluster crew")
    assert dialog.locator("input[name=price]").input_value() == "0.75"
    assert violations(page, ".jp-Dialog") == {}
    dialog.get_by_role("button", name="Do this").click()
    crew.get_by_text("asked for: 1 to 2 nodes, at most $0.75/h").wait_for()

    dialog = _asked(page, "gpumarket:scale-cluster", {"nodes": 0}, "Scale cluster crew")
    dialog.get_by_role("button", name="Do this").click()
    refused = page.locator(".jp-Dialog [role=alert]").filter(has_text="from 1 to 1000")
    refused.wait_for()
    page.locator(".jp-Dialog input[name=maximum]").fill("1")
    page.locator(".jp-Dialog").get_by_role("button", name="Do this").click()
    crew.get_by_text("1 ready, asked for: 1 node").wait_for()
    assert "give back 1 node" in crew.locator(".gm-Why").inner_text()
    until("the pool has one again", lambda: rented(market) == 1)


def _gives_back(page: Any, crew: Any, market: RunningPool) -> None:
    dialog = _asked(page, "gpumarket:release-cluster", {"cluster": "crew", "force": True}, "Give cluster crew back")
    assert rented(market) == 1
    dialog.get_by_role("button", name="Release cluster").click()
    until("the pool has all again", lambda: rented(market) == 0)
    crew.wait_for(state="detached")
    page.locator("#gm-sidebar").get_by_text("Nothing is rented").wait_for()
    assert page.problems == []
