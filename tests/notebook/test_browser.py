"""Cleaned output in a real browser: nothing runs and nothing is loaded. Raw, the same payloads do both (the control).

HTML is put on the page as JupyterLab does with a trusted output: into the document, and its scripts made to run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from jupyter_gpumarket.cleaning import clean_bundle
from jupyter_gpumarket.cleaning.html import clean_html
from tests.notebook.hostile import HTML, SVG

pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOME = "https://lab.test/lab"

SHOW = """
html => new Promise(resolve => {
  const host = document.createElement('div');
  document.body.appendChild(host);
  host.innerHTML = html;
  for (const old of host.querySelectorAll('script')) {
    const script = document.createElement('script');
    for (const a of old.attributes) script.setAttribute(a.name, a.value);
    script.textContent = old.textContent;
    old.replaceWith(script);
  }
  for (const element of host.querySelectorAll('*')) {
    if (element.tagName !== 'A' || !element.href || !element.href.startsWith('https://'))
      try { element.click && element.click(); } catch (e) {}
    element.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));
    element.dispatchEvent(new MouseEvent('mousemove', {bubbles: true}));
  }
  setTimeout(() => resolve(true), 25);
})
"""


class Watched:
    """A page that counts what ran (`alert`) and what it tried to load."""

    def __init__(self, browser: Any) -> None:
        self.context = browser.new_context()
        self.hits = 0
        self.requests: list[str] = []
        self.context.expose_function("hit", self._hit)
        self.context.add_init_script("window.alert = () => window.hit()")
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.open()

    def open(self) -> None:
        self.page.goto(HOME)

    def show(self, html: str) -> None:
        """Put it on the page, click it, wait a moment. A page that is navigated away is opened again."""
        try:
            self.page.evaluate(SHOW, html)
        except Exception:
            self.requests.append("the page was left")
        if self.page.url != HOME:
            self.requests.append(self.page.url)
            self.open()

    def _hit(self) -> None:
        self.hits += 1

    def _route(self, route: Any) -> None:
        if route.request.url == HOME:
            route.fulfill(body="<!doctype html><title>lab</title><body></body>", content_type="text/html")
            return
        self.requests.append(route.request.url)
        route.abort()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


def test_cleaned_html_runs_and_loads_nothing(browser: Any) -> None:
    """All hostile HTML, cleaned, on one page after the other: no script ran, no request went out."""
    watched = Watched(browser)
    for payload in HTML:
        watched.show(clean_html(payload))
    watched.show("".join(clean_html(payload) for payload in HTML))

    assert watched.hits == 0
    assert watched.requests == []


def test_the_same_html_raw_runs_and_loads(browser: Any) -> None:
    """Control: without cleaning, many of the payloads run script and many load from elsewhere."""
    ran = loaded = 0
    for payload in HTML[::4]:  # each needs a browser context of its own, which takes half a second
        watched = Watched(browser)
        watched.show(payload)
        ran += watched.hits > 0
        loaded += len(watched.requests) > 0
        watched.context.close()

    # Each is watched for a moment only; on a busy machine some are too late to be seen.
    assert ran >= 5
    assert loaded >= 4


def test_svg_runs_and_loads_nothing(browser: Any) -> None:
    """What is shown of hostile SVG does nothing; the same SVG put into the page does."""
    cleaned, raw = Watched(browser), Watched(browser)
    for payload in SVG[:17]:
        bundle = clean_bundle({"image/svg+xml": payload, "text/plain": "x"})
        cleaned.show(bundle.data.get("text/html", ""))
        raw.show(payload)

    assert (cleaned.hits, cleaned.requests) == (0, [])
    assert raw.hits > 0
    assert len(raw.requests) > 3
