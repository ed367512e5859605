"""What the node does: processor, memory, disk, GPUs. Failing softly, since not every node tells."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import Any

import psutil

from jupyter_gpumarket.wire.messages import GpuReport, UseReport

GIB = 1024**3


class UseMeter:
    """Measures; make one and keep it, for processor use is counted between calls."""

    def __init__(self, folder: Path, nvml: Any) -> None:
        """`nvml` is what `start_nvml` returned."""
        self._folder = folder
        self._nvml = nvml
        self._traffic_at_first = traffic()
        psutil.cpu_percent()

    def measure(self, at_ms: int) -> UseReport:
        """What the node does now. May take some ten milliseconds where there are GPUs."""
        memory = psutil.virtual_memory()
        received, sent = (now - first for now, first in zip(traffic(), self._traffic_at_first, strict=True))
        return UseReport(
            at_ms=at_ms,
            cpu_percent=psutil.cpu_percent(),
            memory_used_gib=(memory.total - memory.available) / GIB,
            memory_total_gib=memory.total / GIB,
            disk_free_gib=psutil.disk_usage(str(self._folder)).free / GIB,
            gpus=self._gpus(),
            received_bytes=max(0, received),
            sent_bytes=max(0, sent),
        )

    def _gpus(self) -> tuple[GpuReport, ...]:
        nvml = self._nvml
        if nvml is None:
            return ()
        reports: list[GpuReport] = []
        with contextlib.suppress(nvml.NVMLError):
            for index in range(nvml.nvmlDeviceGetCount()):
                device = nvml.nvmlDeviceGetHandleByIndex(index)
                name = nvml.nvmlDeviceGetName(device)
                memory = nvml.nvmlDeviceGetMemoryInfo(device)
                use = -1.0
                # Not told inside MIG slices and some virtual machines.
                with contextlib.suppress(nvml.NVMLError):
                    use = float(nvml.nvmlDeviceGetUtilizationRates(device).gpu)
                reports.append(
                    GpuReport(
                        index=index,
                        name=name.decode() if isinstance(name, bytes) else name,
                        use_percent=max(use, 0.0),
                        memory_used_gib=memory.used / GIB,
                        memory_total_gib=memory.total / GIB,
                    )
                )
        return tuple(reports)


def traffic() -> tuple[int, int]:
    """Bytes that came and went by all of the node's network but loopback; zero where that is not told."""
    with contextlib.suppress(OSError, RuntimeError):
        counted = [of for name, of in psutil.net_io_counters(pernic=True).items() if not name.startswith("lo")]
        return sum(of.bytes_recv for of in counted), sum(of.bytes_sent for of in counted)
    return 0, 0


def start_nvml() -> Any:
    """NVIDIA's library, or None where there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pynvml
        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - a broken driver may raise anything, and then there are no GPU facts
        return None
    return pynvml
