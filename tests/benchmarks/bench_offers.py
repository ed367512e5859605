"""The Offers view with many offers in a real JupyterLab and Chromium, and JupyterLab's start with and without it.

    python -m tests.benchmarks.bench_offers [offers] [rounds]

The list is made up here and given to the page in place of the server's answer; all else is as it is used. `first paint`
is from the last byte of that answer until rows are painted: reading JSON, ordering, filtering, drawing.
"""

from __future__ import annotations

import gzip
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from jupyter_gpumarket.api import OfferFigures, OfferList
from jupyter_gpumarket.api.columns import columns
from jupyter_gpumarket.models import Offer, PriceKind, Tier
from tests.lab.running import Lab, built, chromium, lab_in, open_lab, open_sidebar

MODELS = (
    ("RTX 3090", 24, 0.2),
    ("RTX 4090", 24, 0.35),
    ("A100 SXM 80GB", 80, 1.1),
    ("H100 SXM", 80, 2.1),
    ("T4", 16, 0.1),
)
PAINTED = "() => new Promise(done => requestAnimationFrame(() => { const c = new MessageChannel(); "
PAINTED += "c.port1.onmessage = () => done(performance.now()); c.port2.postMessage(0); }))"

SLIDES = (
    """async count => {
  const painted = """
    + PAINTED
    + """;
  const slider = document.querySelectorAll('#gm-sidebar input[type=range]')[1];
  const took = [];
  for (let i = 0; i < count; i++) {
    await painted();
    const began = performance.now();
    slider.value = String(20 + (i * 7) % 20);
    slider.dispatchEvent(new Event('input', {bubbles: true}));
    took.push(await painted() - began);
  }
  slider.value = slider.max;
  slider.dispatchEvent(new Event('input', {bubbles: true}));
  await painted();
  return took;
}"""
)

SCROLLS = """async count => {
  const list = document.querySelector('#gm-sidebar .gm-Offers-list');
  const frame = () => new Promise(done => requestAnimationFrame(done));
  const took = [];
  let blank = 0;
  let before = await frame();
  for (let i = 0; i < count; i++) {
    list.scrollTop += 300;
    const now = await frame();
    took.push(now - before);
    before = now;
    const at = document.elementFromPoint(list.getBoundingClientRect().x + 20, list.getBoundingClientRect().bottom - 40);
    blank += at && at.closest('.gm-Line') ? 0 : 1;
  }
  return {took, blank};
}"""

FIRST = (
    """async () => {
  const painted = """
    + PAINTED
    + """;
  while (!document.querySelector('#gm-sidebar .gm-Line')) await painted();
  const shown = await painted();
  const answers = performance.getEntriesByType('resource').filter(one => one.name.includes('/offers/columns'));
  return shown - answers.at(-1).responseEnd;
}"""
)


def market(count: int) -> bytes:
    """A list of so many offers as the server sends it, the same each time."""
    made = random.Random(1)
    offers = []
    for number in range(count):
        gpu, vram, price = made.choice(MODELS)
        gpus = made.choice((1, 1, 2, 4, 8))
        offers.append(
            Offer(
                marketplace=made.choice(("vast", "runpod", "akash", "lium")),
                offer_id=f"o{number}",
                machine_id=f"m{number}",
                price_nusd_hour=round(price * gpus * made.uniform(0.6, 1.6) * 1e6) * 1000,
                seen_ms=time.time_ns() // 1_000_000 - made.randrange(300_000),
                kind=made.choice((PriceKind.ON_DEMAND, PriceKind.SPOT)),
                gpu=gpu,
                gpu_raw=f"NVIDIA {gpu}",
                gpu_count=gpus,
                vram_gib=vram,
                memory_gib=64,
                disk_gib=100,
                region=made.choice(("eu-west", "us-east", "us-west", "ap-south")),
                tier=made.choice((Tier.COMMUNITY, Tier.VERIFIED, Tier.DATACENTER)),
                reliability=made.random(),
            )
        )
    offers.sort(key=lambda offer: offer.price_nusd_hour)
    found = OfferList(offers=offers, statuses=[], figures=[OfferFigures(boot_s=120.0) for _ in offers])
    return msgspec.json.encode(columns(found, now_ms=time.time_ns() // 1_000_000))


def with_many(browser: Any, lab: Lab, answer: bytes) -> None:
    """Measure the view in one page and print."""
    page = open_lab(browser, lab)
    page.route("**/offers/columns*", lambda route: route.fulfill(body=answer, content_type="application/json"))
    devtools = page.context.new_cdp_session(page)
    before = heap(devtools)
    open_sidebar(page, 300)
    print(f"first paint after the answer       {page.evaluate(FIRST):8.0f} ms")
    page.wait_for_timeout(2000)
    took = sorted(page.evaluate(SLIDES, 60))
    print(f"slider to paint, median / p95      {took[30]:8.1f} / {took[57]:.1f} ms")
    scrolled = page.evaluate(SCROLLS, 120)
    frames = sorted(scrolled["took"])
    rate = 1000 / statistics.mean(frames)
    print(f"scrolling, frames a second         {rate:8.1f}, worst frame {frames[-1]:.0f} ms, blank {scrolled['blank']}")
    print(f"heap above JupyterLab alone        {(heap(devtools) - before) / 2**20:8.1f} MiB")
    assert page.problems == [], page.problems
    page.context.close()


def heap(devtools: Any) -> int:
    """Bytes that JavaScript uses, after collecting what it does not."""
    devtools.send("HeapProfiler.collectGarbage")
    used: int = devtools.send("Runtime.getHeapUsage")["usedSize"]
    return used


def starts(browser: Any, labs: dict[str, Lab], rounds: int) -> None:
    """JupyterLab's start with and without the extension, turn by turn."""
    took: dict[str, list[float]] = {name: [] for name in labs}
    for turn in range(rounds + 1):
        for name, lab in labs.items():
            began = time.monotonic()
            open_lab(browser, lab).context.close()
            if turn:  # the first start warms caches
                took[name].append(time.monotonic() - began)
    middle = {name: statistics.median(times) for name, times in took.items()}
    print(f"JupyterLab's start with / without  {middle['with']:8.2f} / {middle['without']:.2f} s", end="")
    print(f", ratio {middle['with'] / middle['without']:.3f}")


def main(count: int, rounds: int) -> None:
    """Measure and print."""
    extension = built()
    scripts = [*(extension / "static").glob("*.js")]
    size = sum(len(gzip.compress(script.read_bytes(), 9)) for script in scripts if script.name != "style.js")
    widget = len(gzip.compress((extension.parent / "static" / "widget.js").read_bytes(), 9))
    answer = market(count)
    print(f"{count} offers: {len(answer) / 1e6:.1f} MB of JSON, {len(gzip.compress(answer, 6)) / 1e6:.1f} MB gzipped")
    print(f"plugin as served / widget, gzipped {size / 1000:8.1f} / {widget / 1000:.1f} KB")
    with tempfile.TemporaryDirectory(prefix="gb", dir="/tmp", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        with (
            lab_in(folder / "with", folder / "home", extension=extension) as ours,
            lab_in(folder / "without", folder / "home", extension=None) as bare,
            chromium() as browser,
        ):
            with_many(browser, ours, answer)
            starts(browser, {"with": ours, "without": bare}, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, int(sys.argv[2]) if len(sys.argv) > 2 else 5)
