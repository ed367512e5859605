"""Every registered marketplace is whole: tested by the contract, documented, and built from settings."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.config import Folders, Secret, Settings
from jupyter_gpumarket.marketplaces import registry
from jupyter_gpumarket.simulator.process import STAND_INS, new_key
from tests.marketplaces.contract import MarketplaceContract

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("entry", registry.MARKETPLACES, ids=lambda entry: entry.name)
def test_each_marketplace_is_tested_and_documented(entry: registry.Entry) -> None:
    """It has its file here with the contract inherited, and a page that names its settings."""
    module = importlib.import_module(f"tests.marketplaces.test_{entry.name}")
    page = (ROOT / "docs" / "marketplaces" / f"{entry.name}.md").read_text("utf-8")
    kept = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, MarketplaceContract)]

    assert [x for x in kept if x is not MarketplaceContract]
    assert f"[marketplaces.{entry.name}]" in page
    for option in entry.options.__struct_fields__:
        assert f"`{option}`" in page, option


def test_names_are_unique() -> None:
    """No two marketplaces share a name."""
    assert len(set(registry.NAMES)) == len(registry.MARKETPLACES)


def made(tmp_path: Path) -> Folders:
    for name in ("state", "config"):
        (tmp_path / name).mkdir(exist_ok=True)
    return Folders(tmp_path / "state", tmp_path / "config")


async def test_build_makes_what_is_set_up(tmp_path: Path) -> None:
    """With a URL and a key the pool is built, under its name; nothing is skipped."""
    settings = Settings(marketplaces={"pool": {"url": "http://127.0.0.1:1"}})
    environment = {"JUPYTER_GPUMARKET_POOL_KEY": "secret"}
    built = registry.build(settings, made(tmp_path), environment)
    for market in built.values():
        await market.aclose()

    assert {name: market.name for name, market in built.items()} == {"pool": "pool"}
    assert "pool" not in registry.skipped(settings, made(tmp_path), environment)


@pytest.mark.parametrize(
    ("marketplaces", "name", "words"),
    [
        ({}, "pool", "url"),
        ({"pool": {"url": "http://127.0.0.1:1"}}, "pool", "JUPYTER_GPUMARKET_POOL_KEY"),
        ({"pool": {"url": "http://lab.example"}}, "pool", "https"),
        ({"pool": {"url": 3}}, "pool", "url"),
        ({"pool": {"url": "http://127.0.0.1:1", "nothing": 1}}, "pool", "nothing"),
        ({"poool": {}}, "poool", "did you mean pool"),
    ],
)
def test_what_is_skipped_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marketplaces: dict[str, dict[str, object]], name: str, words: str
) -> None:
    """A marketplace that cannot be used never stops the others, and its reason names what to change."""
    monkeypatch.setenv("PYTHON_KEYRING_BACKEND", "keyring.backends.null.Keyring")
    settings = Settings(marketplaces=marketplaces)
    environment = {} if words.startswith("JUPYTER") else {"JUPYTER_GPUMARKET_POOL_KEY": "secret"}
    reasons = registry.skipped(settings, made(tmp_path), environment)

    assert words in reasons[name]
    assert "pool" not in registry.build(settings, made(tmp_path), environment)


def table() -> dict[str, list[str]]:
    """The rows of the docs' table of marketplaces, by name."""
    text = (ROOT / "docs" / "marketplaces" / "README.md").read_text("utf-8").split("## What no program")[0]
    rows = re.findall(r"^\| \[(\w+)\]\((\w+)\.md\) \|(.*)\|$", text, re.MULTILINE)
    assert all(name == page for name, page, _ in rows)
    return {name: [cell.strip() for cell in cells.split("|")][1:] for name, _, cells in rows}


def test_the_docs_table_matches_the_registry() -> None:
    """One row for each marketplace, in the registry's order, and each says what the adapter says of itself."""

    def word(is_so: bool) -> str:
        return "yes" if is_so else "no"

    expected = {}
    for entry in registry.MARKETPLACES:
        options = msgspec.convert({"url": "http://127.0.0.1:1"}, entry.options)
        can = entry.factory(options, Secret(new_key(entry.name))).capabilities
        expected[entry.name] = [
            *map(word, (can.spot, can.auction, can.own_timer, can.self_stop)),
            "SSH in a WebSocket" if can.https_only else "SSH",
            *map(word, (can.charges, entry.lists_without_key, entry.name in STAND_INS)),
        ]

    assert table() == expected
    assert list(table()) == [entry.name for entry in registry.MARKETPLACES]


@pytest.mark.parametrize("network", ["Aethir", "Gensyn"])
def test_what_cannot_be_rented_has_an_honest_row(network: str) -> None:
    """No pretended adapter, and a row that says why and what there is instead."""
    text = (ROOT / "docs" / "marketplaces" / "README.md").read_text("utf-8").split("## What no program")[1]

    assert network.casefold() not in registry.NAMES
    assert re.search(rf"^\| \*\*{network}\*\* \| .{{80,}} \| .{{30,}} \|$", text, re.MULTILINE)
