"""What a machine really has: its GPUs by NVML, its CPU, memory and disk; and the offers made of them."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from jupyter_gpumarket.api.pool import HostOffer, MachineFacts
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.models import Record

GIB = 1024**3
# Passed on to leases, whose probe tells it.
DEMO_GPU = "GPUMARKET_DEMO_GPU"


class Gpu(Record, frozen=True, kw_only=True):
    """One GPU as NVML tells it."""

    index: int
    name: str
    vram_gib: float


class Machine(Record, frozen=True, kw_only=True):
    """The whole machine."""

    gpus: tuple[Gpu, ...]
    driver: str
    cuda: str
    cpu_model: str
    cpu_cores: int
    memory_gib: float
    disk_gib: float
    demo_gpu: Gpu | None = None


def look(folder: Path) -> Machine:
    """What this machine has now; the disk is the free space where leases will live."""
    gpus, driver, cuda = nvidia()
    return Machine(
        gpus=gpus,
        driver=driver,
        cuda=cuda,
        cpu_model=cpu_model(),
        cpu_cores=usable_cores(),
        memory_gib=round(memory_bytes() / GIB, 2),
        disk_gib=round(shutil.disk_usage(folder).free / GIB, 1),
        demo_gpu=demo_gpu(os.environ.get(DEMO_GPU, "")),
    )


def demo_gpu(text: str) -> Gpu | None:
    """`NVIDIA RTX A4000:16`: a GPU that a demo's machine without one is listed with. Only demos may rent it: nodes tell
    that it is none, and the probe refuses it wherever the user's own settings do not allow it.

    Raises:
        ConfigError: it cannot be read.
    """
    if not text:
        return None
    name, _, memory = text.rpartition(":")
    if not name or not memory.isdecimal():
        raise ConfigError(f"--demo-gpu {text!r}: write it like 'NVIDIA RTX A4000:16', the name and its GiB")
    return Gpu(index=0, name=name, vram_gib=float(memory))


def offers_of(
    machine: Machine, host_id: str, *, price_nusd_hour: int, split: bool = False, only: Sequence[int] | None = None
) -> tuple[HostOffer, ...]:
    """The offers of a machine: all (chosen) GPUs as one, or each with its share of the rest; without GPUs, its CPUs.

    `price_nusd_hour` is for one GPU, or for the whole machine when it has none.

    Raises:
        ConfigError: a chosen GPU is not there.
    """
    gpus = machine.gpus if only is None else tuple(gpu for gpu in machine.gpus if gpu.index in only)
    missing = sorted(set(only or ()) - {gpu.index for gpu in machine.gpus})
    if missing:
        there = ", ".join(str(gpu.index) for gpu in machine.gpus) or "none"
        raise ConfigError(f"--gpus names GPU {missing[0]}, which NVML does not show; there are: {there}")
    if not gpus:
        shown = () if machine.demo_gpu is None else (machine.demo_gpu,)
        return (HostOffer(offer_id=f"{host_id}.cpu", price_nusd_hour=price_nusd_hour, facts=facts(machine, shown, 1)),)
    sets = [(gpu,) for gpu in gpus] if split else [gpus]
    return tuple(
        HostOffer(
            offer_id=f"{host_id}.gpu" + "-".join(str(gpu.index) for gpu in chosen),
            price_nusd_hour=price_nusd_hour * len(chosen),
            facts=facts(machine, chosen, len(sets)),
            gpus=tuple(gpu.index for gpu in chosen),
        )
        for chosen in sets
    )


def facts(machine: Machine, gpus: tuple[Gpu, ...], parts: int) -> MachineFacts:
    """What one offer of `parts` equal ones covers."""
    return MachineFacts(
        gpu_raw=" + ".join(dict.fromkeys(gpu.name for gpu in gpus)),
        gpu_count=len(gpus),
        vram_gib=min((gpu.vram_gib for gpu in gpus), default=0.0),
        driver=machine.driver if gpus else "",
        cuda=machine.cuda if gpus else "",
        cpu_model=machine.cpu_model,
        cpu_cores=max(1, machine.cpu_cores // parts),
        memory_gib=round(machine.memory_gib / parts, 2),
        disk_gib=round(machine.disk_gib / parts, 1),
    )


def nvidia() -> tuple[tuple[Gpu, ...], str, str]:
    """GPUs, driver and CUDA version by NVML; nothing where there is no NVIDIA driver."""
    try:
        import pynvml
    except ImportError:
        return (), "", ""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return (), "", ""
    try:
        gpus = tuple(one_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount()))
        cuda = pynvml.nvmlSystemGetCudaDriverVersion_v2()
        return gpus, text(pynvml.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}"
    finally:
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def one_gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(index=index, name=text(nvml.nvmlDeviceGetName(handle)), vram_gib=round(memory.total / GIB, 2))


def text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def cpu_model() -> str:
    """The processor's name as the system shows it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine's."""
    with contextlib.suppress(AttributeError, OSError):
        return max(1, len(psutil.Process().cpu_affinity() or [0]))
    return psutil.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, or of the control group where that is less."""
    total: int = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text("utf-8")))
    return total
