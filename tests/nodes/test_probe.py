"""The probe: against a real sshd with recorded answers of nvidia-smi, and against nodes that lie or hang."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.nodes import Installed, ProbeResult, probe
from tests.nodes.openssh import Sshd

INSTALLED = Installed(
    python=sys.executable, python_version="3.11", folder="/", versions={}, steps_ms={}, attach_command=""
)

# As nvidia-smi 550 answers on a machine with two H100 and one divided A100.
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*compute_cap*)
    echo "0, NVIDIA H100 80GB HBM3, 81559, GPU-11111111-aaaa-bbbb-cccc-000000000000, 550.54.15, 9.0, Disabled"
    echo "1, NVIDIA H100 80GB HBM3, 81559, GPU-22222222-aaaa-bbbb-cccc-000000000000, 550.54.15, 9.0, Disabled"
    echo "2, NVIDIA A100-SXM4-80GB, 81920, GPU-33333333-aaaa-bbbb-cccc-000000000000, 550.54.15, 8.0, Enabled" ;;
  -L)
    echo "GPU 2: NVIDIA A100-SXM4-80GB (UUID: GPU-33333333-aaaa-bbbb-cccc-000000000000)"
    echo "  MIG 3g.40gb     Device  0: (UUID: MIG-1)"
    echo "  MIG 1g.10gb     Device  1: (UUID: MIG-2)" ;;
  conf-compute) echo "CC status: OFF" ;;
  "") echo "| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |" ;;
  *) exit 2 ;;
esac
"""
OLD_SMI = """#!/bin/sh
case "$1" in
  *compute_cap*) echo "Field is not a valid field to query." ; exit 2 ;;
  --query-gpu=*) echo "0, Tesla T4, 15109, GPU-44444444, 418.67" ;;
  *) exit 2 ;;
esac
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Sshd]:
    (tmp_path / "bin").mkdir()
    server = Sshd(tmp_path / "node", environment={"PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin"})
    yield server
    server.stop()


async def probed(node: Sshd, offer: Offer | None = None, **environment: str) -> ProbeResult:
    node.environment |= environment
    link = node.start().link()
    await link.connect()
    try:
        return await probe(link, INSTALLED, offer)
    finally:
        await link.aclose()


def program(node: Sshd, text: str) -> None:
    file = node.folder.parent / "bin" / "nvidia-smi"
    file.write_text(text)
    file.chmod(0o755)


def offer(**facts: object) -> Offer:
    return Offer(marketplace="m", offer_id="o", machine_id="x", price_nusd_hour=1, seen_ms=0, **facts)  # type: ignore[arg-type]


async def test_several_gpus_are_read_from_the_driver(node: Sshd) -> None:
    """Names, memory, driver, CUDA, capability and MIG slices come from nvidia-smi's own words."""
    program(node, SMI)
    report = (await probed(node)).report

    assert [gpu["name"] for gpu in report["gpus"]] == ["NVIDIA H100 80GB HBM3"] * 2 + ["NVIDIA A100-SXM4-80GB"]
    assert report["gpus"][0]["vram_mib"] == 81559
    assert report["gpus"][0]["compute_capability"] == "9.0"
    assert report["gpus"][2]["mig_slices"] == ["3g.40gb", "1g.10gb"]
    assert (report["cuda"], report["gpus"][1]["driver"], report["confidential"]) == ("12.4", "550.54.15", "OFF")


async def test_an_old_driver_is_understood(node: Sshd) -> None:
    """Where nvidia-smi does not know the newer fields, the older ones are enough."""
    program(node, OLD_SMI)
    result = await probed(node, offer(gpu="T4", gpu_count=1, vram_gib=16))

    assert result.report["gpus"][0]["driver"] == "418.67"
    assert result.differences == ()


async def test_only_the_leases_own_gpus_count(node: Sshd) -> None:
    """On a shared machine CUDA_VISIBLE_DEVICES narrows what nvidia-smi shows: one was sold, one is counted."""
    program(node, SMI)
    result = await probed(node, offer(gpu="H100 SXM", gpu_count=2, vram_gib=80), CUDA_VISIBLE_DEVICES="1")

    assert [gpu["index"] for gpu in result.report["gpus"]] == [1]
    assert result.differences == ("2 × H100 SXM sold, 1 there",)


async def test_a_machine_without_a_gpu_is_reported_and_measured(node: Sshd) -> None:
    """Processor, memory, disk, the calculation and the network both ways have figures, within the time limit."""
    started = time.monotonic()
    result = await probed(node, offer(cpu_cores=1, memory_gib=0.5))
    report = result.report

    assert time.monotonic() - started < 25
    assert result.differences == ()
    assert report["cpu_cores"] >= 1
    assert report["memory_mib"] > 256
    assert report["disk_free_mib"] > 0
    assert report["compute"][0]["tflops"] > 0
    assert report["network"]["round_trip_ms"] > 0
    assert report["network"]["down_mbps"] > 1
    assert report["network"]["up_mbps"] > 1


async def test_a_driver_that_hangs_costs_a_bounded_time(node: Sshd) -> None:
    """An nvidia-smi that never answers is told as trouble, and what was sold is told as missing."""
    program(node, "#!/bin/sh\nexec sleep 600\n")
    started = time.monotonic()
    result = await probed(node, offer(gpu="T4", gpu_count=1))

    assert time.monotonic() - started < 25
    assert "nvidia-smi did not answer within 6 s" in result.report["trouble"]
    assert result.differences == ("1 × T4 sold, 0 there",)


async def test_words_from_the_node_are_made_plain(node: Sshd) -> None:
    """Escape sequences and endless names in a report become one bounded printable line."""
    program(node, "#!/bin/sh\nprintf '0, H100\\033[2J\\033]0;x\\007%0500d, 81559, GPU-1, 1.0, 9.0, Disabled\\n' 0\n")
    name = (await probed(node)).report["gpus"][0]["name"]

    assert name.isprintable()
    assert len(name) <= 300


async def test_a_report_that_is_none_is_an_error(node: Sshd, tmp_path: Path) -> None:
    """A python on the node that prints something else gives a NodeError."""
    liar = tmp_path / "liar"
    liar.write_text('#!/bin/sh\ncat >/dev/null\necho \'GPUMARKET-ANSWER {"gpus": [{"vram_mib": "many"}]}\'\n')
    liar.chmod(0o755)
    link = node.start().link()
    await link.connect()
    with pytest.raises(NodeError, match="does not fit"):
        await probe(link, Installed(**{**as_dict(INSTALLED), "python": str(liar)}), None)
    await link.aclose()


def as_dict(installed: Installed) -> dict[str, object]:
    return {name: getattr(installed, name) for name in installed.__struct_fields__}
