"""The front end's headless parts, its types and its size."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from tests.labextension.conftest import SOURCE, run_in

MAX_GZIP_BYTES = 40_000
MAX_ENTRY_LINES = 100
SOURCES = sorted((SOURCE / "src").rglob("*.ts"))

pytestmark = pytest.mark.timeout(420)


@pytest.mark.slow
def test_the_front_end_passes_its_own_tests(front_end: Path) -> None:
    """Model, formats and decisions hold what their tests in TypeScript say."""
    said = run_in(front_end, "node", "test/run.mjs")

    assert re.search(r"^(# |ℹ )tests [1-9]\d*", said, flags=re.MULTILINE), said
    assert re.search(r"^(# |ℹ )fail 0", said, flags=re.MULTILINE), said


@pytest.mark.slow
def test_types_are_strict(front_end: Path) -> None:
    """The compiler finds nothing in its strictest settings."""
    run_in(front_end, "npx", "--no-install", "tsc", "--noEmit")


@pytest.mark.slow
def test_the_bundle_is_small(front_end: Path) -> None:
    """What a page loads at its start, and what the Offers view adds when it is first seen, is each at most 40 KB."""
    run_in(front_end, "node", "build.mjs")
    lib = front_end / "lib"
    sizes = {file.name: len(gzip.compress(file.read_bytes(), 9)) for file in lib.glob("*.js")}
    at_start = {"index.js", *re.findall(r"from\s*\"\./([\w.-]+)\"", (lib / "index.js").read_text("utf-8"))}
    first = sum(sizes[name] for name in at_start)
    print(f"plugin: {first} bytes gzipped at the start, {sum(sizes.values())} in all")

    assert len(sizes) > len(at_start), "the Offers view is loaded when it is first seen"
    assert first <= MAX_GZIP_BYTES
    assert sum(sizes.values()) - first <= MAX_GZIP_BYTES


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_no_source_goes_around_the_rules(source: Path) -> None:
    """No `any`, no markup out of text, no custom element; no file over 500 lines."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", source.read_text("utf-8"), flags=re.DOTALL)

    assert not re.search(r"[:<,|(]\s*any\b|\bas any\b", code)
    assert not re.search(r"unsafeHTML|unsafeSVG|innerHTML|outerHTML|insertAdjacentHTML|customElements", code)
    assert len(source.read_text("utf-8").splitlines()) <= 500


def test_only_one_module_asks_the_server() -> None:
    """Views and models have no way to the network: `transport.ts` alone sends, and only `api.ts` knows the routes."""
    sending = re.compile(r"(?<![.\w])fetch\(|window\.fetch|XMLHttpRequest|makeRequest|WebSocket\(|sendBeacon")
    asking = [s.name for s in SOURCES if sending.search(s.read_text("utf-8"))]
    importing = [s.name for s in SOURCES if "from './transport'" in s.read_text()]

    assert asking == ["transport.ts"]
    assert importing == ["index.ts"]


def test_the_plugin_entry_only_connects() -> None:
    """`index.ts` has at most a hundred lines."""
    assert len((SOURCE / "src" / "index.ts").read_text("utf-8").splitlines()) <= MAX_ENTRY_LINES


def test_the_lock_file_names_no_host() -> None:
    """Where packages come from is each machine's own setting."""
    lock = json.loads((SOURCE / "package-lock.json").read_text("utf-8"))

    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
