"""Every view in every theme and at both widths: accessible by axe-core, inside of its width, and kept as a picture.

The pictures go to the folder that GPUMARKET_PICTURES names, and else to the test's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.running import Lab, command, notebook_in, open_notebook, run_all, until, widen

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


@pytest.fixture(scope="module")
def page(browser: Any, lab: Lab) -> Iterator[Any]:
    """A notebook that has rented a node and run a cell there."""
    name = notebook_in(lab, "views.ipynb", "%load_ext jupyter_gpumarket", "%%gpu --budget 0.2\nprint(6 * 7)")
    opened = open_notebook(browser, lab, name)
    run_all(opened)
    cells = opened.locator(".jp-OutputArea-output")
    until("the cell has run", lambda: "42" in "".join(cells.all_inner_texts()), 240)
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


def violations(page: Any) -> dict[str, Any]:
    """What axe-core finds wrong in the sidebar, by rule."""
    return {
        one["id"]: [(node["html"][:160], node["failureSummary"][:300]) for node in one["nodes"][:3]]
        for one in axe.Axe().run(page, context=SIDEBAR).response["violations"]
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
