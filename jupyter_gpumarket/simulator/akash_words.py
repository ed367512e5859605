"""The rows of Akash's answers, and how an SDL is read. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import msgspec

from jupyter_gpumarket.models import Offer, Record

PRETENDED = ("rtx4090", "24Gi", "PCIe", 1)
UACT = "uact"
UNCAPPED = re.compile(r"nvidia|geforce|tesla|\s")
CODES = {
    400: ("BadRequestError", "bad_request", "client_error"),
    401: ("UnauthorizedError", "unauthorized", "authorization_error"),
    404: ("NotFoundError", "not_found", "client_error"),
    429: ("TooManyRequestsError", "rate_limited", "client_error"),
    503: ("ServiceUnavailableError", "service_unavailable", "service_unavailable"),
}


class AskedFor(Record, frozen=True, kw_only=True):
    """What an SDL asks for. `most_uact` is its ceiling for a block."""

    name: str
    cores: int
    memory_gib: int
    disk_gib: int
    gpus: int
    model: str
    most_uact: Decimal
    ssh_key: str


def asked_for(text: str) -> AskedFor:
    """Read an SDL of one service, written as JSON.

    Raises:
        msgspec.MsgspecError, KeyError, IndexError, ValueError: it does not say what is needed.
    """
    whole = msgspec.json.decode(text)
    if not isinstance(whole, dict) or whole["version"] not in ("2.0", "2.1"):
        raise ValueError('version must be "2.0" or "2.1"')
    ((service, said),) = whole["services"].items()
    ((name, placement),) = whole["profiles"]["placement"].items()
    if whole["deployment"][service][name]["count"] < 1 or not said["image"]:
        raise ValueError(f'service "{service}" has no image or no count')
    wished = whole["profiles"]["compute"][whole["deployment"][service][name]["profile"]]["resources"]
    price = placement["pricing"][service]
    if price["denom"] != UACT:
        raise ValueError(f"pricing denom {price['denom']}")
    gpu = wished.get("gpu") or {"units": 0}
    alternatives = gpu["attributes"]["vendor"]["nvidia"] if gpu["units"] else None
    env = dict(line.partition("=")[::2] for line in said.get("env", ()))
    return AskedFor(
        name=name,
        cores=int(wished["cpu"]["units"]),
        memory_gib=size_gib(wished["memory"]["size"]),
        disk_gib=size_gib(wished["storage"][0]["size"]),
        gpus=int(gpu["units"]),
        model=alternatives[0]["model"] if alternatives else "",
        most_uact=Decimal(str(price["amount"])),
        ssh_key=str(env.get("GPUMARKET_PUBLIC_KEY", env.get("SSH_PUBKEY", ""))),
    )


def size_gib(text: str) -> int:
    """Raises ValueError where it is not in GiB."""
    if not text.endswith("Gi"):
        raise ValueError(f"size {text}")
    return int(text.removesuffix("Gi"))


def akash_gpu(host: Offer, *, pretend: bool) -> tuple[str, str, str, int]:
    """A host's model, memory, interface and number, as Akash writes them."""
    if pretend:
        return PRETENDED
    model = UNCAPPED.sub("", re.sub(r"[\s-]\d+\s?gb.*", "", host.gpu_raw.lower()))
    return model, f"{round(host.vram_gib)}Gi", "SXM5" if "hbm" in host.gpu_raw.lower() else "PCIe", host.gpu_count


def uact(nusd_hour: int, block_ms: int) -> Decimal:
    """A price of an hour as what one block costs, with the digits that Akash's bids have."""
    return (Decimal(nusd_hour) * block_ms / 3_600_000 / 1000).quantize(Decimal("1e-12"))


def coin(amount: Decimal, denom: str = UACT) -> dict[str, str]:
    return {"denom": denom, "amount": f"{amount:.18f}"}


def party(owner: str, dseq: str, provider: str) -> dict[str, Any]:
    """Who a bid or a lease is between."""
    return {"owner": owner, "dseq": dseq, "gseq": 1, "oseq": 1, "provider": provider, "bseq": 0}


def offered(wish: AskedFor) -> dict[str, Any]:
    """The resources of a wish: thousandths of a core, bytes and GPUs, all as text."""
    gpu = [{"key": f"vendor/nvidia/model/{wish.model}", "value": "true"}] if wish.gpus else []
    disk = {"name": "default", "quantity": {"val": str(wish.disk_gib * 2**30)}, "attributes": []}
    return {
        "cpu": {"units": {"val": str(wish.cores * 1000)}, "attributes": []},
        "gpu": {"units": {"val": str(wish.gpus)}, "attributes": gpu},
        "memory": {"quantity": {"val": str(wish.memory_gib * 2**30)}, "attributes": []},
        "storage": [disk],
        "endpoints": [{"kind": "RANDOM_PORT", "sequence_number": 0}],
    }


def group_row(owner: str, dseq: str, wish: AskedFor, created_at: str) -> dict[str, Any]:
    signed = {"all_of": [], "any_of": ["akash1365yvmc4s7awdyj3n2sav7xfx76adc6dnmlx63"]}
    resource = {"resource": {"id": 1, **offered(wish)}, "count": 1, "price": coin(wish.most_uact)}
    spec = {"name": wish.name, "requirements": {"signed_by": signed, "attributes": []}, "resources": [resource]}
    identity = {"owner": owner, "dseq": dseq, "gseq": 1}
    return {"id": identity, "state": "open", "group_spec": spec, "created_at": created_at}


def escrow_of(
    scope: str, xid: str, owner: str, *, paid: Decimal, funds: Decimal, settled: int, open_: bool = True
) -> dict[str, Any]:
    """An escrow account: nothing of it moves until somebody settles."""
    state = {
        "owner": owner,
        "state": "open" if open_ else "closed",
        "transferred": [coin(paid)],
        "settled_at": str(settled),
        "funds": [coin(funds if open_ else Decimal(0))],
        "deposits": [],
    }
    return {"id": {"scope": scope, "xid": xid}, "state": state}


def block_row(height: int, moment: str) -> dict[str, Any]:
    who = {"address": "akashvaloper1", "operatorAddress": "akashvaloper1", "moniker": "somebody", "avatarUrl": ""}
    counts = {"transactionCount": 1, "totalTransactionCount": height}
    return {"height": height, "proposer": who, **counts, "datetime": moment}


def provider_row(owner: str, host: Offer, gpu: tuple[str, str, str, int]) -> dict[str, Any]:
    """A host of the pool as one provider among many, with the fields that Akash always has."""
    nulls = ("email", "website", "ipRegionCode", "ipLat", "ipLon", "host", "statusPage", "city", "timezone")
    more = ("hostingProvider", "hardwareCpu", "hardwareCpuArch", "hardwareGpuVendor", "hardwareMemory")
    model, ram, interface, count = gpu
    cards = [{"vendor": "nvidia", "model": model, "ram": ram, "interface": interface}] if count else []
    lists = ("hardwareGpuModels", "hardwareDisk", "featPersistentStorageType", "workloadSupportChiaCapabilities")
    flags = ("featPersistentStorage", "featEndpointCustomDomain", "workloadSupportChia", "featEndpointIp")
    return {
        **dict.fromkeys((*nulls, *more)),
        **{name: [] for name in lists},
        **dict.fromkeys(flags, False),
        "owner": owner,
        "name": "provider.example.net",
        "hostUri": "https://provider.example.net:8443",
        "createdHeight": 1,
        "lastCheckDate": None,
        "deploymentCount": 0,
        "leaseCount": 0,
        "cosmosSdkVersion": "v0.53.0",
        "akashVersion": "2.0.0",
        "ipRegion": host.region or None,
        "ipCountry": host.country or None,
        "ipCountryCode": host.country or None,
        "uptime1d": 1,
        "uptime7d": 0.999,
        "uptime30d": 0.998,
        "isValidVersion": True,
        "isOnline": True,
        "lastOnlineDate": None,
        "isAudited": True,
        "gpuModels": cards,
        "attributes": [{"key": "tier", "value": "community", "auditedBy": []}],
        "organization": "pool",
        "locationRegion": host.region or None,
        "country": host.country or None,
        "locationType": "datacenter",
        "networkProvider": None,
        "networkSpeedDown": 1000,
        "networkSpeedUp": 1000,
        "tier": "community",
    }
