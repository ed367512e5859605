"""GPU names come out right, and unknown ones stay unknown."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from jupyter_gpumarket.offers.gpus import canonical, matching, nearest, specs


@pytest.mark.parametrize(
    ("raw", "vram_gib", "name"),
    [
        ("RTX 4090", 24.0, "RTX 4090"),
        ("RTX 4090", 48.0, "RTX 4090 48GB (modified)"),
        ("NVIDIA GeForce RTX 4090", 23.99, "RTX 4090"),
        ("H100_NVL", 80.0, "H100 PCIe"),
        ("A100_SXM4", 80.0, "A100 SXM 80GB"),
        ("A100_SXM4", 40.0, "A100 SXM 40GB"),
        ("Tesla T4", 14.75, "T4"),
        ("NVIDIA H200", 140.4, "H200 SXM"),
        ("rtx4090", None, "RTX 4090"),
        ("Voodoo 2", 12.0, None),
        ("RTX 4090", 999.0, None),
    ],
)
def test_spelling_and_memory_together_name_the_model(raw: str, vram_gib: float | None, name: str | None) -> None:
    """A spelling is resolved by its VRAM; a memory that no such card has is unknown, not guessed."""
    assert canonical(raw, vram_gib) == name


def test_every_spelling_seen_is_known() -> None:
    """All recorded spellings lead to a model of the specification table."""
    text = (files("jupyter_gpumarket.offers") / "data" / "gpu_aliases.csv").read_text("utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    lost = [row for row in rows if canonical(row["raw"], float(row["vram_gib"]) if row["vram_gib"] else None) is None]

    assert len(rows) > 600
    assert lost == []


@pytest.mark.parametrize(
    ("wanted", "models"),
    [
        ("H100", {"H100 80GB", "H100 NVL", "H100 PCIe", "H100 SXM"}),
        ("rtx4090", {"RTX 4090", "RTX 4090 48GB (modified)"}),
        ("4090", {"RTX 4090", "RTX 4090 48GB (modified)"}),
        ("RTX 4070", {"RTX 4070"}),
        ("L40", {"L40"}),
        ("H200 NVL", {"H200 NVL"}),
        ("no such card", set()),
    ],
)
def test_a_request_means_a_family_but_not_its_neighbours(wanted: str, models: set[str]) -> None:
    """Memory and bus variants belong to a request; a Ti, Super or S is another card."""
    assert matching(wanted) == models


def test_unknown_names_have_neighbours_to_suggest() -> None:
    """A typing error leads to the intended card."""
    assert nearest("RTX 4900")
    assert set(nearest("H1000")) & set(specs())
