"""What a stranger's node shows, in a real JupyterLab: no script runs, nothing is loaded from elsewhere, nothing outside
of the cell changes. The control shows the same payloads from the notebook's own kernel, and the harm is there.
"""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.lab.running import Lab, notebook_in, open_notebook, run_all, until
from tests.notebook.hostile import HTML, LATEX, MARKDOWN, SVG

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(420)]

# JupyterLab shows the first 50 outputs of a cell.
PER_CELL = 40
EVIL = "https://evil.example/"
VEGA = {
    "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
    "data": {"url": EVIL + "data.json"},
    "mark": {"type": "point", "href": "javascript:alert(1)"},
    "encoding": {"x": {"field": "a"}},
}
OTHERS: list[dict[str, Any]] = [
    {"application/javascript": "alert(1)"},
    {"text/javascript": "alert(1)"},
    {"application/vnd.jupyter.widget-view+json": {"model_id": "0" * 32, "version_major": 2, "version_minor": 0}},
    {"application/vnd.vegalite.v5+json": VEGA},
    {"application/vnd.vega.v5+json": {"data": [{"name": "d", "url": EVIL + "v.json"}], "marks": []}},
    {"application/vdom.v1+json": {"tagName": "img", "attributes": {"src": EVIL}, "children": []}},
    {
        "application/geo+json": {
            "type": "Point",
            "coordinates": [0, 0],
            "properties": {"x": "<script>alert(1)</script>"},
        }
    },
    {"application/pdf": "JVBERi0xLjQ="},
    {"application/json": {"<img src=x onerror=alert(1)>": "<script>alert(1)</script>"}},
    {"image/png": "<script>alert(1)</script>"},
    {"image/jpeg": f'" onerror="alert(1)" src="{EVIL}'},
    {"text/plain": "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\ \x1b[8mhidden\x1b[0m"},
    {"application/x-unknown": "<script>alert(1)</script>", "text/html": "<script>alert(1)</script>"},
]
PAYLOADS: list[dict[str, Any]] = [
    *({"text/html": payload} for payload in HTML),
    *({"image/svg+xml": payload} for payload in SVG[:23]),  # the others only exhaust the browser
    *({"text/markdown": payload} for payload in MARKDOWN),
    *({"text/latex": payload} for payload in LATEX[:-2]),
    *OTHERS,
]
SHOW = """from IPython.display import publish_display_data
for data in payloads[{start}:{stop}]:
    publish_display_data(data)"""

# Elements at fixed places of the page: still JupyterLab's own?
CHROME = """
() => [[20, 10], [300, 10], [20, 300], [640, 890]].map(([x, y]) => {
  const found = document.elementFromPoint(x, y);
  return found !== null && found.closest('.jp-OutputArea') === null;
})
"""
TOUCH = """
() => {
  for (const element of document.querySelectorAll('.jp-OutputArea-output *')) {
    if (element.tagName !== 'A' || !(element.href || '').startsWith('https://')) element.click && element.click();
    element.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
  }
}
"""


class Watch:
    """What a page did that it should not: scripts that ran, requests that left the server, the page itself left."""

    def __init__(self, page: Any, lab: Lab) -> None:
        self.ran = 0
        self.left: list[str] = []
        self._own = urlsplit(lab.url).netloc
        page.context.expose_function("hit", self._hit)
        page.evaluate("() => { window.alert = () => window.hit(); }")
        page.context.add_init_script("window.alert = () => window.hit()")
        page.context.route(lambda url: urlsplit(url).netloc != self._own, self._stop)
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.context.on("page", lambda opened: self.left.append(opened.url))

    def _hit(self) -> None:
        self.ran += 1

    def _stop(self, route: Any) -> None:
        address = route.request.url
        if urlsplit(address).scheme in ("http", "https", "ws", "wss"):
            self.left.append(address)
        route.abort()


def shown(browser: Any, lab: Lab, name: str, first: list[str], magic: str) -> tuple[Watch, Any]:
    """A notebook that shows all payloads, begun."""
    (lab.root / "payloads.json").write_text(json.dumps(PAYLOADS))
    cells = [magic + SHOW.format(start=n, stop=n + PER_CELL) for n in range(0, len(PAYLOADS), PER_CELL)]
    load = "import json\npayloads = json.load(open('payloads.json'))"
    page = open_notebook(browser, lab, notebook_in(lab, name, *first, load, *cells, "print(6 * 7)"))
    watch = Watch(page, lab)
    run_all(page)
    return watch, page


def finished(page: Any) -> bool:
    """The last cell has printed."""
    texts = page.evaluate(
        "() => [...document.querySelectorAll('.jp-OutputArea-output')].slice(-1).map(e => e.innerText)"
    )
    return bool(texts) and texts[0].strip() == "42"


def test_what_a_node_shows_does_nothing_in_a_real_lab(browser: Any, lab: Lab) -> None:
    """HTML, SVG, Markdown, formulas, scripts, charts, widgets, JSON and pictures from a node: all are harmless."""
    watch, page = shown(
        browser, lab, "hostile.ipynb", ["%load_ext jupyter_gpumarket"], "%%gpu -i payloads --budget 0.05\n"
    )
    until("all cells have run", lambda: finished(page), 240)
    page.evaluate(TOUCH)
    page.wait_for_timeout(500)

    assert (watch.ran, watch.left) == (0, [])
    assert all(page.evaluate(CHROME))
    assert page.locator(".jp-Dialog").count() == 0
    assert page.locator(".jp-OutputArea-output").count() > len(PAYLOADS) // 2
    page.context.close()


def test_the_same_shown_by_the_notebook_itself_does_harm(browser: Any, lab: Lab) -> None:
    """Control: without a node between, scripts run and requests go out, so the test above can fail."""
    watch, page = shown(browser, lab, "control.ipynb", [], "")

    until("scripts have run", lambda: page.evaluate("1") and watch.ran > 10)
    until("something was asked elsewhere", lambda: page.evaluate("1") and any(EVIL in one for one in watch.left))
    page.context.close()
