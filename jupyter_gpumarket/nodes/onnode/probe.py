"""What this machine is: GPUs, processor, memory, disk, and a short calculation. Sent as text, runs on the node.

Standard library only, Python 3.8 and up; torch, cupy or numpy are used for the calculation where they are there. What
cannot be found out is left out, and `trouble` says why. The user's side knows that a node can lie here.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MARK = "GPUMARKET-ANSWER "
QUERY_S = 6
QUERIES = (
    "index,name,memory.total,uuid,driver_version,compute_cap,mig.mode.current",
    "index,name,memory.total,uuid,driver_version",
)
MIG_LINE = re.compile(r"^\s+MIG (\S+)\s+Device")

# Runs in a process of its own, so that a broken driver or a library that hangs costs a time limit and no more.
COMPUTE = r"""
import json, sys, time

def best(run, sync, budget_s):
    run(); sync()
    times = []
    end = time.perf_counter() + budget_s
    while not times or (time.perf_counter() < end and len(times) < 50):
        start = time.perf_counter(); run(); sync()
        times.append(time.perf_counter() - start)
    return min(times)

def told(library, device, name, memory, n, dtype, product_s, copied, copy_s):
    return {"library": library, "device": device, "name": name, "memory_mib": memory // 2**20, "n": n, "dtype": dtype,
        "tflops": round(2 * n**3 / product_s / 1e12, 3), "bandwidth_gb_s": round(2 * copied / copy_s / 1e9, 1)}

def with_torch():
    import torch
    if not torch.cuda.is_available():
        return []
    found = []
    for i in range(min(torch.cuda.device_count(), 16)):
        facts = torch.cuda.get_device_properties(i)
        free = torch.cuda.mem_get_info(i)[0]
        n = 8192 if free > 2**31 else 2048
        a = torch.randn(n, n, device=f"cuda:{i}", dtype=torch.float16)
        sync = lambda: torch.cuda.synchronize(i)
        product_s = best(lambda: a @ a, sync, 0.25)
        size = 2**29 if free > 2**32 else 2**26
        x = torch.zeros(size, dtype=torch.uint8, device=f"cuda:{i}"); y = torch.empty_like(x)
        copy_s = best(lambda: y.copy_(x), sync, 0.1)
        found.append(told("torch", f"cuda:{i}", facts.name, facts.total_memory, n, "float16", product_s, size, copy_s))
        del a, x, y
        torch.cuda.empty_cache()
    return found

def with_cupy():
    import cupy
    found = []
    for i in range(min(cupy.cuda.runtime.getDeviceCount(), 16)):
        with cupy.cuda.Device(i):
            facts = cupy.cuda.runtime.getDeviceProperties(i)
            n = 4096
            a = cupy.random.rand(n, n, dtype=cupy.float32).astype(cupy.float16)
            sync = cupy.cuda.Stream.null.synchronize
            product_s = best(lambda: a @ a, sync, 0.25)
            x = cupy.zeros(2**28, dtype=cupy.uint8); y = cupy.empty_like(x)
            copy_s = best(lambda: cupy.copyto(y, x), sync, 0.1)
            found.append(told("cupy", f"cuda:{i}", facts["name"].decode(), facts["totalGlobalMem"], n, "float16",
                product_s, 2**28, copy_s))
    return found

def with_numpy():
    import numpy
    n = 1024
    a = numpy.ones((n, n), dtype=numpy.float32)
    product_s = best(lambda: a @ a, lambda: None, 0.2)
    x = numpy.zeros(2**25, dtype=numpy.uint8); y = numpy.empty_like(x)
    copy_s = best(lambda: numpy.copyto(y, x), lambda: None, 0.1)
    return [told("numpy", "cpu", "cpu", 0, n, "float32", product_s, 2**25, copy_s)]

for attempt in ([with_torch, with_cupy] if sys.argv[1] == "gpu" else []) + [with_numpy]:
    try:
        found = attempt()
    except Exception as error:
        print(f"{attempt.__name__}: {type(error).__name__}: {error}"[:300], file=sys.stderr)
        continue
    if found:
        print("RESULT " + json.dumps(found))
        break
"""


def answer(order_text: str) -> None:
    """Probe the machine and print what was found."""
    order = json.loads(order_text)
    until = time.monotonic() + order["limit_s"]
    trouble: list[str] = []
    gpus = visible(nvidia(trouble), os.environ.get("CUDA_VISIBLE_DEVICES"))
    # On big machines each nvidia-smi takes seconds: what is only nice to know is left out when time is short.
    has_time = bool(gpus) and until - time.monotonic() > order["limit_s"] / 2
    cuda, cc = (cuda_version(trouble), confidential(trouble)) if has_time else ("", "")
    left_s = max(2.0, until - time.monotonic())
    computed = compute(order["python"], bool(gpus) or has_gpu_device(), left_s, trouble)
    if not gpus:
        gpus = [gpu_of(item) for item in computed if item["device"] != "cpu"] or demo_gpus()
    disk = shutil.disk_usage(os.path.expanduser("~"))
    result = {
        "gpus": gpus,
        "cuda": cuda,
        "cpu_model": cpu_model(),
        "cpu_cores": cpu_cores(),
        "memory_mib": memory_bytes() // 2**20,
        "disk_total_mib": disk.total // 2**20,
        "disk_free_mib": disk.free // 2**20,
        "os": os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "confidential": cc,
        "compute": computed,
        "trouble": trouble,
    }
    print(MARK + json.dumps(result))  # noqa: T201 - the answer


def said(argv: list[str], trouble: list[str]) -> str | None:
    """What a program prints; None when it is not there, fails or hangs. One that hung is not asked again."""
    hung = f"{argv[0]} did not answer within {QUERY_S} s"
    if hung in trouble:
        return None
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=QUERY_S,
            check=True,
        )
    except subprocess.TimeoutExpired:
        trouble.append(hung)
        return None
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")


def nvidia(trouble: list[str]) -> list[dict[str, Any]]:
    """The GPUs that nvidia-smi tells; older ones know fewer fields."""
    if not shutil.which("nvidia-smi"):
        return []
    for query in QUERIES:
        text = said(["nvidia-smi", "--query-gpu=" + query, "--format=csv,noheader,nounits"], trouble)
        gpus = [gpu for line in (text or "").splitlines() for gpu in gpu_line(query, line)]
        if gpus:
            slices = mig_slices(trouble) if any(gpu.get("mig") == "Enabled" for gpu in gpus) else []
            for gpu in gpus:
                gpu["mig_slices"] = slices if gpu.pop("mig", "") == "Enabled" else []
            return gpus
    trouble.append("nvidia-smi is there and tells no GPU")
    return []


def gpu_line(query: str, line: str) -> list[dict[str, Any]]:
    """One line of nvidia-smi's table as a GPU."""
    values = dict(zip(query.split(","), (part.strip() for part in line.split(","))))  # noqa: B905 - 3.8 has no strict
    try:
        memory = int(float(values["memory.total"]))
        index = int(values["index"])
    except (KeyError, ValueError):
        return []
    return [
        {
            "index": index,
            "name": values.get("name", ""),
            "vram_mib": memory,
            "uuid": values.get("uuid", ""),
            "driver": values.get("driver_version", ""),
            "compute_capability": values.get("compute_cap", ""),
            "mig": values.get("mig.mode.current", ""),
        }
    ]


def mig_slices(trouble: list[str]) -> list[str]:
    """Profiles such as `1g.10gb`, when a GPU is divided."""
    lines = (said(["nvidia-smi", "-L"], trouble) or "").splitlines()
    return [match.group(1) for match in map(MIG_LINE.match, lines) if match][:64]


def visible(gpus: list[dict[str, Any]], chosen: str | None) -> list[dict[str, Any]]:
    """Those that programs of this session see: nvidia-smi shows all, CUDA_VISIBLE_DEVICES narrows them."""
    if chosen is None:
        return gpus
    wanted = [item.strip() for item in chosen.split(",") if item.strip()]
    if any(item.startswith("MIG-") for item in wanted):
        return gpus[: len(wanted)]
    kept = []
    for item in wanted:
        matching = [
            g for g in gpus if str(g["index"]) == item or (item.startswith("GPU-") and g["uuid"].startswith(item))
        ]
        if not matching:
            break
        kept += matching[:1]
    return kept


def has_gpu_device() -> bool:
    """Whether there is a GPU driver of another kind (AMD), or nvidia-smi is missing in the container."""
    return any(map(os.path.exists, ("/dev/kfd", "/dev/nvidiactl", "/dev/nvidia0")))


def gpu_of(item: dict[str, Any]) -> dict[str, Any]:
    """A GPU that only the calculation saw."""
    index = int(item["device"].partition(":")[2] or 0)
    return {"index": index, "name": item["name"], "vram_mib": item["memory_mib"], "mig_slices": []}


def demo_gpus() -> list[dict[str, Any]]:
    """A machine that lends itself to a demo says so: the GPU that it is listed with, marked as none."""
    name, _, memory = os.environ.get("GPUMARKET_DEMO_GPU", "").rpartition(":")
    return [{"index": 0, "name": name, "vram_mib": int(memory) * 1024, "is_demo": True}] if name else []


def cuda_version(trouble: list[str]) -> str:
    """The newest CUDA that the driver takes."""
    match = re.search(r"CUDA Version:\s*([0-9.]+)", (said(["nvidia-smi"], trouble) or "")[:4000])
    return match.group(1) if match else ""


def confidential(trouble: list[str]) -> str:
    """Whether confidential computing is on, where the driver tells."""
    match = re.search(r"CC status:\s*(\w+)", said(["nvidia-smi", "conf-compute", "-f"], trouble) or "")
    return match.group(1) if match else ""


def compute(python: str, gpu: bool, limit_s: float, trouble: list[str]) -> list[dict[str, Any]]:
    """A short matrix product and a copy in memory on each GPU, else on the processor."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    try:
        done = subprocess.run(
            [python, "-c", COMPUTE, "gpu" if gpu else "cpu"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=limit_s,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        trouble.append(f"the calculation did not end within {limit_s:.0f} s")
        return []
    except OSError as error:
        trouble.append(f"the calculation did not start: {error}")
        return []
    trouble += done.stderr.decode("utf-8", "replace").strip().splitlines()[-3:] if gpu else []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        if line.startswith("RESULT "):
            found: list[dict[str, Any]] = json.loads(line[7:])
            return found
    return []


def read(path: str) -> str:
    """A small file's text, or nothing."""
    try:
        with open(path) as file:
            return file.read(65536)
    except OSError:
        return ""


def cpu_model() -> str:
    """The processor's name."""
    match = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    return match.group(1).strip() if match else platform.processor()


def cpu_cores() -> float:
    """Cores that this container may use: affinity, and the quota of control groups."""
    try:
        cores = float(len(os.sched_getaffinity(0)))
    except AttributeError:
        cores = float(os.cpu_count() or 1)
    quota = read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) != 2:
        quota = [read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), read("/sys/fs/cgroup/cpu/cpu.cfs_period_us")]
    try:
        allowed = int(quota[0]) / int(quota[1])
    except (ValueError, ZeroDivisionError):
        allowed = -1.0
    return round(min(cores, allowed) if allowed > 0 else cores, 2)


def memory_bytes() -> int:
    """Memory that this container may use."""
    match = re.search(r"^MemTotal:\s*(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    total = int(match.group(1)) * 1024 if match else 0
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = read(path).strip()
        if text.isdigit() and 0 < int(text) < (total or sys.maxsize):
            return int(text)
    return total


def os_name() -> str:
    """The distribution, as it names itself."""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', read("/etc/os-release"), re.MULTILINE)
    return match.group(1) if match else platform.system()
