"""Is the node what was sold? A pure comparison of the probe's report with the offer.

A better machine is no difference. What a marketplace did not tell is not compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from jupyter_gpumarket.models import Offer, Record
from jupyter_gpumarket.nodes.address import shown

# Drivers report up to 8 % less than what is marketed (a 16 GB T4 with ECC shows 14.8 GiB).
VRAM_TOLERANCE = 0.08
CORES_TOLERANCE = 0.10
MEMORY_TOLERANCE = 0.15
DISK_TOLERANCE = 0.10
# The image and others' files lie on a node's disk too; less free space than this part of what was sold is too little.
DISK_FREE_SHARE = 0.5
# Words that makers, marketplaces and drivers put around a model's name without meaning another model.
_NOISE = frozenset(
    """
    nvidia amd intel geforce tesla radeon instinct quadro rtx gtx graphics generation blackwell edition workstation
    server fhhl ws se max q ac oam modified pcie nvl hbm2 hbm2e hbm3 hbm3e mig
    """.split()  # noqa: SIM905 - a list of thirty quoted words is harder to read
)
_MEMORY_OR_BUS = re.compile(r"\d+(gb|g)\Z|sxm\d?\Z")
_JOINED = re.compile(r"(?<=\d)(ti|super)\Z")


class Gpu(Record, frozen=True, kw_only=True):
    """One GPU that the node shows. `is_demo`: the node itself says that it is none, but part of a demo."""

    index: int = 0
    name: str = ""
    vram_mib: int = 0
    uuid: str = ""
    driver: str = ""
    compute_capability: str = ""
    mig_slices: tuple[str, ...] = ()
    is_demo: bool = False


class Compute(Record, frozen=True, kw_only=True):
    """How fast one device was in a short matrix product and a copy in memory."""

    library: str
    device: str
    name: str = ""
    memory_mib: int = 0
    n: int = 0
    dtype: str = ""
    tflops: float = 0.0
    bandwidth_gb_s: float = 0.0


class Network(Record, frozen=True, kw_only=True):
    """The way between the user's side and the node, over the link. None: could not be measured."""

    round_trip_ms: float | None = None
    down_mbps: float | None = None
    up_mbps: float | None = None


class ProbeReport(Record, frozen=True, kw_only=True):
    """What the node says that it is. `confidential` is the driver's word, not an attestation."""

    gpus: tuple[Gpu, ...] = ()
    cuda: str = ""
    cpu_model: str = ""
    cpu_cores: float = 0.0
    memory_mib: int = 0
    disk_total_mib: int = 0
    disk_free_mib: int = 0
    os: str = ""
    kernel: str = ""
    machine: str = ""
    python: str = ""
    confidential: str = ""
    compute: tuple[Compute, ...] = ()
    network: Network = Network()
    trouble: tuple[str, ...] = ()


def compare(report: ProbeReport, offer: Offer, *, demo: bool = False) -> tuple[str, ...]:
    """In which points the node is less than what was sold; empty: as sold. Only a `demo` takes a demo's GPU for one."""
    if not demo:
        real = tuple(gpu for gpu in report.gpus if not gpu.is_demo)
        report = msgspec.structs.replace(report, gpus=real)
    return (*_gpu_differences(report, offer), *_machine_differences(report, offer))


def _gpu_differences(report: ProbeReport, offer: Offer) -> Iterator[str]:
    sold = offer.gpu or offer.gpu_raw
    if offer.gpu_count < 1:
        return
    if len(report.gpus) < offer.gpu_count:
        yield f"{offer.gpu_count} × {sold or 'GPU'} sold, {len(report.gpus)} there"
    for gpu in report.gpus[: offer.gpu_count]:
        if sold and not any(same_model(name, gpu.name) for name in (offer.gpu, offer.gpu_raw) if name):
            yield f"{sold} sold, GPU {gpu.index} is {shown(gpu.name, 80)}"
        vram_gib = _vram_gib(gpu)
        if vram_gib < offer.vram_gib * (1 - VRAM_TOLERANCE):
            yield f"{offer.vram_gib:g} GiB of GPU memory sold, GPU {gpu.index} has {vram_gib:.1f}"


def _machine_differences(report: ProbeReport, offer: Offer) -> Iterator[str]:
    if report.cpu_cores < offer.cpu_cores * (1 - CORES_TOLERANCE):
        yield f"{offer.cpu_cores} processor cores sold, {report.cpu_cores:g} there"
    if report.memory_mib / 1024 < offer.memory_gib * (1 - MEMORY_TOLERANCE):
        yield f"{offer.memory_gib:g} GiB of memory sold, {report.memory_mib / 1024:.1f} there"
    if report.disk_total_mib / 1024 < offer.disk_gib * (1 - DISK_TOLERANCE):
        yield f"{offer.disk_gib:g} GiB of disk sold, {report.disk_total_mib / 1024:.1f} there"
    elif report.disk_free_mib / 1024 < offer.disk_gib * DISK_FREE_SHARE:
        yield f"{offer.disk_gib:g} GiB of disk sold, only {report.disk_free_mib / 1024:.1f} of it free"


def _vram_gib(gpu: Gpu) -> float:
    """Of a divided GPU, the slice is what a program gets: `1g.10gb` has 10."""
    sizes = [int(found.group(1)) for s in gpu.mig_slices if (found := re.search(r"\.(\d{1,4})gb", s))]
    return float(max(sizes)) if sizes else gpu.vram_mib / 1024


def same_model(sold: str, there: str) -> bool:
    """Whether two spellings mean one GPU model; a PCIe card sold as SXM is another (it is slower)."""
    if _words(sold) != _words(there):
        return False
    return not ("sxm" in sold.casefold() and "pcie" in there.casefold())


def _words(name: str) -> frozenset[str]:
    spaced = re.sub(r"[^a-z0-9.]+", " ", name.casefold())
    # Some marketplaces write RTXA4000 and GTX1080 in one word.
    spaced = re.sub(r"\b([rg]tx)(?=[a-z]?\d)", r"\1 ", spaced)
    split = " ".join(_JOINED.sub(r" \1", word) for word in spaced.split())
    # The V100S is the V100 with faster memory; marketplaces sell it under both names.
    split = split.replace("v100s", "v100")
    return frozenset(word for word in split.split() if word not in _NOISE and not _MEMORY_OR_BUS.match(word))
