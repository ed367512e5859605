"""Is a node what was sold: the table of what is and what is not a difference."""

from __future__ import annotations

import csv
from importlib.resources import files

import msgspec
import pytest

from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.nodes.compare import Gpu, ProbeReport, compare, same_model

SOLD = Offer(
    marketplace="m",
    offer_id="o",
    machine_id="x",
    price_nusd_hour=1,
    seen_ms=0,
    gpu="H100 SXM",
    gpu_raw="H100_SXM",
    gpu_count=2,
    vram_gib=80,
    cpu_cores=16,
    memory_gib=128,
    disk_gib=200,
)
H100 = Gpu(index=0, name="NVIDIA H100 80GB HBM3", vram_mib=81559)
REPORT = ProbeReport(
    gpus=(H100, msgspec.structs.replace(H100, index=1)),
    cpu_cores=16,
    memory_mib=128 * 1024,
    disk_total_mib=200 * 1024,
    disk_free_mib=180 * 1024,
)


def test_as_sold_is_no_difference() -> None:
    """The very machine that was offered has no difference."""
    assert compare(REPORT, SOLD) == ()


@pytest.mark.parametrize(
    "better",
    [
        {"cpu_cores": 64},
        {"memory_mib": 10**6},
        {"disk_total_mib": 10**7, "disk_free_mib": 10**7},
        {"gpus": REPORT.gpus * 4},
        {"gpus": tuple(msgspec.structs.replace(g, vram_mib=98304) for g in REPORT.gpus)},
    ],
)
def test_a_better_machine_is_no_difference(better: dict[str, object]) -> None:
    """More of anything than was paid for is welcome."""
    assert compare(msgspec.structs.replace(REPORT, **better), SOLD) == ()


@pytest.mark.parametrize(
    ("worse", "told"),
    [
        ({"gpus": ()}, "2 × H100 SXM sold, 0 there"),
        ({"gpus": (H100,)}, "2 × H100 SXM sold, 1 there"),
        (
            {"gpus": (H100, Gpu(index=1, name="NVIDIA A100-SXM4-80GB", vram_mib=81920))},
            "GPU 1 is NVIDIA A100-SXM4-80GB",
        ),
        ({"gpus": (H100, Gpu(index=1, name="NVIDIA H100 PCIe", vram_mib=81559))}, "GPU 1 is NVIDIA H100 PCIe"),
        ({"gpus": (H100, Gpu(index=1, name="NVIDIA H100 80GB HBM3", vram_mib=40000))}, "GPU 1 has 39.1"),
        ({"gpus": (H100, msgspec.structs.replace(H100, index=1, mig_slices=("1g.10gb",)))}, "GPU 1 has 10.0"),
        ({"cpu_cores": 14.0}, "16 processor cores sold, 14 there"),
        ({"memory_mib": 100 * 1024}, "128 GiB of memory sold, 100.0 there"),
        ({"disk_total_mib": 170 * 1024}, "200 GiB of disk sold, 170.0 there"),
        ({"disk_free_mib": 90 * 1024}, "only 90.0 of it free"),
    ],
)
def test_less_than_sold_is_told(worse: dict[str, object], told: str) -> None:
    """Each way in which a node can fall short is one difference that says what was sold and what is there."""
    (found,) = compare(msgspec.structs.replace(REPORT, **worse), SOLD)

    assert told in found


@pytest.mark.parametrize(
    "within",
    [
        {"cpu_cores": 14.5},
        {"memory_mib": 110 * 1024},
        {"disk_total_mib": 181 * 1024},
        {"gpus": tuple(msgspec.structs.replace(g, vram_mib=75500) for g in REPORT.gpus)},
    ],
)
def test_what_makers_and_systems_keep_for_themselves_is_no_difference(within: dict[str, object]) -> None:
    """Inside the tolerances a machine counts as sold."""
    assert compare(msgspec.structs.replace(REPORT, **within), SOLD) == ()


def test_what_was_not_told_is_not_compared() -> None:
    """An offer that says nothing but a price fits any machine."""
    bare = Offer(marketplace="m", offer_id="o", machine_id="x", price_nusd_hour=1, seen_ms=0)

    assert compare(ProbeReport(), bare) == ()


def test_every_known_spelling_of_the_driver_fits_its_model() -> None:
    """For each model, what nvidia-smi calls it counts as that model (the alias table names both)."""
    table = files("jupyter_gpumarket") / "offers" / "data" / "gpu_aliases.csv"
    rows = list(csv.DictReader(table.read_text("utf-8").splitlines()))
    pairs = {(row["canonical_name"], row["raw"]) for row in rows if "nvidia-smi" in row["styles"].split(";")}
    strangers = sorted(pair for pair in pairs if not same_model(*pair))

    assert len(pairs) > 50
    assert strangers == []


def test_different_models_are_told_apart() -> None:
    """No driver's name of one model passes for a model of another family."""
    pairs = [
        ("RTX 4090", "NVIDIA GeForce RTX 3090"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 D"),
        ("RTX 4070 Ti", "NVIDIA GeForce RTX 4070"),
        ("RTX 4070 Super", "NVIDIA GeForce RTX 4070"),
        ("RTX 3080 Ti", "NVIDIA GeForce RTX 3080"),
        ("A100 SXM 80GB", "NVIDIA A100 80GB PCIe"),
        ("A10", "NVIDIA A100-PCIE-40GB"),
        ("L40S", "NVIDIA L40"),
        ("H200 SXM", "NVIDIA H100 80GB HBM3"),
        ("RTX 4090", "NVIDIA GeForce RTX 4090 Laptop GPU"),
        ("RTX 6000 Ada", "Quadro RTX 6000"),
        ("MI300X", "AMD Instinct MI250X"),
    ]

    assert [pair for pair in pairs if same_model(*pair)] == []


@pytest.mark.parametrize(
    ("sold", "there"),
    [
        ("RTX_4090", "NVIDIA GeForce RTX 4090"),
        ("4070Ti", "NVIDIA GeForce RTX 4070 Ti"),
        ("MI300X", "AMD Instinct MI300X OAM"),
        ("h100-sxm5-80gb", "NVIDIA H100 80GB HBM3"),
        ("Tesla V100", "Tesla V100-SXM2-16GB"),
    ],
)
def test_marketplace_spellings_fit_the_drivers(sold: str, there: str) -> None:
    """Case, prefixes, underscores, memory and bus in a name do not make another model."""
    assert same_model(sold, there)
