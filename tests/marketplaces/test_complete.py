"""Every registered marketplace is whole: tested by the contract, documented, and built from settings."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from jupyter_gpumarket.config import Folders, Settings
from jupyter_gpumarket.marketplaces import registry
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
