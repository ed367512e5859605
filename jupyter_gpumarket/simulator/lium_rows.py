"""How a stand-in for Lium words a node, and what one of its rentals has cost."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from jupyter_gpumarket.clock import iso_utc
from jupyter_gpumarket.models import Offer
from jupyter_gpumarket.money import cost_nusd
from jupyter_gpumarket.simulator.figures import Figure
from jupyter_gpumarket.simulator.web import in_dollars
from jupyter_gpumarket.simulator.yard import SimRental

IDS = uuid.UUID("0a4d5f1e-93c1-4d5e-9a0a-3f3a1c1b7c51")
PRETENDED = ("NVIDIA GeForce RTX 4090", 24_564)


def billed(rental: SimRental, now_ms: int) -> tuple[int, int]:
    """What a pod has cost: whole seconds from its creation to its end, and nano-dollars."""
    seconds = -(-((rental.ended_ms or now_ms) - rental.created_ms) // 1000)
    return seconds, cost_nusd(rental.rate_nusd_hour, seconds * 1000)


def statement_row(rental: SimRental, now_ms: int) -> dict[str, Any]:
    seconds, nusd = billed(rental, now_ms)
    return {
        "pod_id": rental.rental_id,
        "pod_name": rental.label,
        "gpu_name": rental.offer.gpu_raw or None,
        "gpu_count": rental.offer.gpu_count,
        "billed_seconds": seconds,
        "total": in_dollars(nusd),
        "created_at": iso_utc(rental.created_ms),
        "removed_at": None if rental.ended_ms is None else iso_utc(rental.ended_ms),
        "api_key_id": "k1",
        "days": [{"day": iso_utc(rental.created_ms)[:10], "billed_seconds": seconds, "total": in_dollars(nusd)}],
    }


def row_of(offer: Offer, now_ms: int, *, pretend: bool) -> dict[str, Any]:
    """A host of the pool as Lium would list it; `pretend` gives it a GPU that it does not have."""
    name, vram_mib = PRETENDED if pretend else (offer.gpu_raw, round(offer.vram_gib * 1024))
    facts = {
        "id": node_of(offer),
        "machine_name": name if pretend or offer.gpu_count else "",
        "gpu_count": 1 if pretend else offer.gpu_count,
        "country": offer.country or "XX",
        "region": offer.region or "Nowhere",
        "vcpus": offer.cpu_cores,
        "cpu_model": offer.cpu_model,
        "ram_kib": int(offer.memory_gib * 1024 * 1024),
        "disk_kib": int(offer.disk_gib * 1024 * 1024),
        "vram_mib": vram_mib,
    }
    return whole_row(facts, offer.price_nusd_hour, now_ms)


def row_of_figure(figure: Figure, number: int, now_ms: int) -> dict[str, Any]:
    """A node that was seen once. Whoever asks for it finds it taken."""
    facts = {
        "id": figure_id(number),
        "machine_name": f"NVIDIA {figure.gpu_raw}",
        "gpu_count": figure.gpu_count,
        "country": figure.country,
        "region": figure.region,
        "vcpus": int(figure.vcpus),
        "cpu_model": "AMD EPYC",
        "ram_kib": int(figure.ram_gib * 1024 * 1024),
        "disk_kib": 1_800_000_000,
        "vram_mib": round(figure.vram_gib * 1024),
    }
    return whole_row(facts, figure.price_nusd_hour, now_ms)


def whole_row(facts: dict[str, Any], price_nusd_hour: int, now_ms: int) -> dict[str, Any]:
    """The fields that all rows have in the same way. One that is rented whole only has null as its least count."""
    count = facts["gpu_count"]
    detail = {"name": facts["machine_name"], "capacity": facts["vram_mib"], "power_limit": 450}
    disk = {"total": facts["disk_kib"], "used": 0, "free": facts["disk_kib"]}
    specs = {
        "gpu": {"count": count, "driver": "570.86.15", "cuda_driver": 12.8, "details": [detail] * count},
        "cpu": {"count": facts["vcpus"], "model": facts["cpu_model"]},
        "ram": {"total": facts["ram_kib"], "free": facts["ram_kib"]},
        "hard_disk": disk,
        "os": "Ubuntu 24.04",
        "sysbox_runtime": True,
        "available_port_count": 40,
    }
    country, region = facts["country"], facts["region"]
    return {
        "id": facts["id"],
        "machine_name": facts["machine_name"],
        "gpu_count": count,
        "available_gpu_count": count,
        "min_gpu_count_for_rental": None,
        "price_per_gpu": in_dollars(price_nusd_hour) / max(1, count),
        "price_per_hour": in_dollars(price_nusd_hour),
        "tier": "secure",
        "executor_ip_address": "127.0.0.1",
        "validator_hotkey": "5F" + hashlib.sha256(facts["id"].encode()).hexdigest()[:46],
        "status": "available",
        "location": {"country": country, "country_code": country, "region_name": region, "city": region},
        "specs": specs,
        "effective_upload_speed_mbps": 800,
        "effective_download_speed_mbps": 850,
        "max_cuda_version": 12.8,
        "reliability_score": 97.5,
        "uptime_in_minutes": 40_321,
        "frequent_rent_failures": False,
        "last_verified_at": iso_utc(now_ms),
        "interconnect": None,
        "nvlink": None,
    }


def node_of(offer: Offer) -> str:
    """A node is a UUID at Lium."""
    return str(uuid.uuid5(IDS, offer.offer_id))


def figure_id(number: int) -> str:
    return str(uuid.uuid5(IDS, f"figure {number}"))
