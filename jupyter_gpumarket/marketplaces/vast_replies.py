"""What Vast.ai answers, as far as we read it, and what its fields mean. Everything may be absent or null but ids."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from jupyter_gpumarket.models import NodeAddress, RentalStatus


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """Fields that we do not know are ignored."""


class Ask(Reply, frozen=True, kw_only=True):
    """One offer. Prices are dollars an hour for all its GPUs; memory is in MB; traffic in Mbps and dollars a GB."""

    id: int
    ask_contract_id: int | None = None
    machine_id: int | None = None
    host_id: int | None = None
    hosting_type: float | None = None
    num_gpus: float | None = None
    gpu_name: str | None = None
    gpu_ram: float | None = None
    cpu_name: str | None = None
    cpu_cores: float | None = None
    cpu_cores_effective: float | None = None
    cpu_ram: float | None = None
    disk_space: float | None = None
    inet_up: float | None = None
    inet_down: float | None = None
    inet_up_cost: Decimal | None = None
    inet_down_cost: Decimal | None = None
    direct_port_count: float | None = None
    geolocation: str | None = None
    dph_total: Decimal | None = None
    cuda_max_good: Decimal | None = None
    reliability: float | None = None
    reliability2: float | None = None
    verification: str | None = None
    vericode: float | None = None
    rentable: bool | None = None

    @property
    def ask(self) -> int:
        """What a create call names."""
        return self.id if self.ask_contract_id is None else self.ask_contract_id


class Asks(Reply, frozen=True, kw_only=True):
    offers: tuple[Ask, ...]


class Created(Reply, frozen=True, kw_only=True):
    success: bool = True
    new_contract: int | None = None
    msg: str = ""


class PortBinding(Reply, frozen=True, kw_only=True):
    HostPort: str | int


class Instance(Reply, frozen=True, kw_only=True):
    """One rented container."""

    id: int
    label: str | None = None
    actual_status: str | None = None
    intended_status: str | None = None
    cur_state: str | None = None
    next_state: str | None = None
    status_msg: str | None = None
    machine_id: int | None = None
    image_runtype: str | None = None
    ssh_host: str | None = None
    ssh_port: int | None = None
    public_ipaddr: str | None = None
    ports: dict[str, list[PortBinding] | None] | list[object] | None = None
    dph_total: Decimal | None = None
    is_bid: bool | None = None
    start_date: Decimal | None = None
    end_date: Decimal | None = None


class InstancePage(Reply, frozen=True, kw_only=True):
    instances: tuple[Instance, ...]
    next_token: str | None = None


class InstanceReply(Reply, frozen=True, kw_only=True):
    """Null is what Vast answers for one that is gone; an answer without the field is no answer."""

    instances: Instance | None


class ChargeRow(Reply, frozen=True, kw_only=True):
    """A row of one instance and period, or one item of it."""

    start: Decimal
    end: Decimal
    amount: Decimal
    type: str = ""
    source: str | None = None
    items: list[ChargeRow] = []


class ChargePage(Reply, frozen=True, kw_only=True):
    results: tuple[ChargeRow, ...]
    next_token: str | None = None


class Me(Reply, frozen=True, kw_only=True):
    id: int
    credit: Decimal | None = None


STARTING = (None, "", "created", "loading", "rebooting")


def status_of(instance: Instance) -> RentalStatus:
    """An instance that was stopped, by us or by a higher bid, is FAILED: it computes nothing and bills for its disk."""
    wishes = (instance.cur_state, instance.intended_status, instance.next_state)
    if all(wish == "stopped" for wish in wishes):
        return RentalStatus.FAILED
    if instance.actual_status == "running":
        return RentalStatus.RUNNING
    if instance.actual_status in STARTING:
        fatal = "OCI runtime create failed" in (instance.status_msg or "")
        return RentalStatus.FAILED if fatal else RentalStatus.PENDING
    return RentalStatus.UNKNOWN


def address_of(instance: Instance) -> NodeAddress | None:
    """The direct port where there is one, else Vast's proxy, which is slower and drops more."""
    direct = instance.ports.get("22/tcp") if isinstance(instance.ports, dict) else None
    host = (instance.public_ipaddr or "").strip()
    if direct and host and (port := _port(direct[0].HostPort)):
        return NodeAddress(host=host, port=port, user="root")
    if instance.ssh_host and instance.ssh_port:
        jupyter = 1 if "jupyter" in (instance.image_runtype or "") else 0
        if port := _port(instance.ssh_port + jupyter):
            return NodeAddress(host=instance.ssh_host.strip(), port=port, user="root")
    return None


def _port(told: str | int) -> int | None:
    text = str(told).strip()
    return int(text) if text.isascii() and text.isdecimal() and 0 < int(text) < 65536 else None
