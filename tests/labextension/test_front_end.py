"""The front end's headless parts, its types and its size."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from tests.labextension.conftest import SOURCE, run_in

# Gzipped: what JupyterLab's start waits for, what follows by itself after it, and everything together.
MAX_START_BYTES, MAX_BEGIN_BYTES, MAX_ALL_BYTES = 5_000, 12_000, 60_000
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
    """JupyterLab's start loads names alone; what follows by itself is little; views come when they are first seen."""
    run_in(front_end, "node", "build.mjs")
    lib = front_end / "lib"
    sizes = {file.name: len(gzip.compress(file.read_bytes(), 9)) for file in lib.glob("*.js")}
    at_start = _with_what_it_needs(lib, "index.js")
    begun = at_start | _with_what_it_needs(lib, next(name for name in sizes if name.startswith("begin-")))
    first, then = (sum(sizes[name] for name in names) for names in (at_start, begun - at_start))
    print(f"plugin: {first} bytes gzipped at the start, {then} after it, {sum(sizes.values())} in all")

    assert first <= MAX_START_BYTES
    assert then <= MAX_BEGIN_BYTES
    assert sum(sizes.values()) <= MAX_ALL_BYTES
    assert [name for name in begun if "gm-Sums" in (lib / name).read_text("utf-8")] == [], "no view is among these"


def _with_what_it_needs(lib: Path, name: str) -> set[str]:
    """A part and all that is loaded with it."""
    found, left = set[str](), [name]
    while left:
        one = left.pop()
        found.add(one)
        needed = re.findall(r"(?:from|import)\s*\"\./([\w.-]+)\"", (lib / one).read_text("utf-8"))
        left += [other for other in needed if other not in found]
    return found


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
    assert importing == ["begin.ts"]


def test_the_plugin_entry_only_connects() -> None:
    """`index.ts` has at most a hundred lines."""
    assert len((SOURCE / "src" / "index.ts").read_text("utf-8").splitlines()) <= MAX_ENTRY_LINES


def test_the_lock_file_names_no_host() -> None:
    """Where packages come from is each machine's own setting."""
    lock = json.loads((SOURCE / "package-lock.json").read_text("utf-8"))

    assert [name for name, package in lock["packages"].items() if "resolved" in package] == []
