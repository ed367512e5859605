"""What is asked of Akash's providers: one container with an SSH server of our own, as a text in their SDL. Pure."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.marketplaces.akash_replies import SSH_PORT, UACT
from jupyter_gpumarket.models import Record

SERVICE = "node"

# Akash's own SSH images all have the same host keys, which anybody can pull; so the container makes its own, at its
# first start. What the image set for its programs is kept for SSH sessions. No `$(…)`: Kubernetes reads that itself.
ENTRYPOINT = """
set -e
if ! command -v sshd >/dev/null; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -q
  apt-get install -q -y --no-install-recommends openssh-server
fi
mkdir -p /run/sshd /root/.ssh
chmod 700 /root/.ssh
rm -f /etc/ssh/ssh_host_*
ssh-keygen -A
printf '%s\\n' "$GPUMARKET_PUBLIC_KEY" > /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
env | grep -E '^(PATH|LD_LIBRARY_PATH|LIBRARY_PATH|CUDA_|NVIDIA_|CONDA_)' > /root/.ssh/environment || true
exec /usr/sbin/sshd -D -e -o PasswordAuthentication=no -o PermitRootLogin=prohibit-password \
 -o PermitUserEnvironment=yes -o AllowTcpForwarding=yes
""".strip()


class Machine(Record, frozen=True, kw_only=True):
    """What one offer stands for. Without GPUs `model` is empty; `ram` and `interface` as the market lists them."""

    cpu_cores: int
    memory_gib: int
    disk_gib: int
    gpu_count: int = 0
    model: str = ""
    ram: str = ""
    interface: str = ""


def sdl(
    machine: Machine, *, name: str, image: str, ssh_public_key: str, most_uact_block: Decimal, tee: str = ""
) -> str:
    """The text of a deployment. `name` becomes its group's name on the chain, by which it is found again.

    JSON, which is YAML as well: nothing in it needs any other quoting.
    """
    resources: dict[str, Any] = {
        "cpu": {"units": machine.cpu_cores},
        "memory": {"size": f"{machine.memory_gib}Gi"},
        "storage": [
            {"size": f"{machine.disk_gib}Gi"},
            # Data loaders want more shared memory than a container has by itself.
            {
                "name": "shm",
                "size": f"{max(1, machine.memory_gib // 4)}Gi",
                "attributes": {"class": "ram", "persistent": False},
            },
        ],
    }
    if machine.gpu_count:
        resources["gpu"] = {"units": machine.gpu_count, "attributes": {"vendor": {"nvidia": [_gpu(machine)]}}}
    params: dict[str, Any] = {"storage": {"shm": {"mount": "/dev/shm"}}}  # noqa: S108 - inside the container
    if tee:
        params["tee"] = tee
    price = int(most_uact_block.to_integral_value(ROUND_CEILING))
    whole = {
        "version": "2.0",
        "services": {
            SERVICE: {
                "image": image,
                "command": ["bash", "-c"],
                "args": [ENTRYPOINT],
                "env": [f"GPUMARKET_PUBLIC_KEY={ssh_public_key.strip()}"],
                "expose": [{"port": SSH_PORT, "as": SSH_PORT, "proto": "tcp", "to": [{"global": True}]}],
                "params": params,
            }
        },
        "profiles": {
            "compute": {SERVICE: {"resources": resources}},
            "placement": {name: {"pricing": {SERVICE: {"denom": UACT, "amount": price}}}},
        },
        "deployment": {SERVICE: {name: {"profile": SERVICE, "count": 1}}},
    }
    return msgspec.json.encode(whole).decode()


def _gpu(machine: Machine) -> dict[str, str]:
    """The SDL knows two interfaces only, where the market lists several."""
    wish = {"model": machine.model}
    if machine.ram:
        wish["ram"] = machine.ram
    if interface := sdl_interface(machine.interface):
        wish["interface"] = interface
    return wish


def sdl_interface(listed: str) -> str:
    """`pcie` or `sxm` for what is listed as PCIe, SXM4, SXM5; empty for anything else."""
    return next((known for known in ("pcie", "sxm") if listed.lower().startswith(known)), "")
