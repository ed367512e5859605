"""What is to run where: the choice of the head, and the orders for schedulers and workers. Pure."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence

from jupyter_gpumarket.api import DaskWish
from jupyter_gpumarket.cluster.authority import Identity
from jupyter_gpumarket.models import TIER_ORDER, PriceKind, Record, Tier
from jupyter_gpumarket.wire.messages import StartDask

LOOPBACK = "127.0.0.1"
# Below the ports that systems give to outgoing connections.
PORTS = range(20_000, 32_000)
UNKNOWN_RELIABILITY = 0.5
HEAD_MODULE = "jupyter_gpumarket.agent.head"
# Over a link with delay the scheduler has to send tasks before workers ask; a scheduler must not give a node up
# because it is silent, for its link may be cut and come back.
SCHEDULER_SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "inf",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "None",
}
DEATH_TIMEOUT_S = 60


class Candidate(Record, frozen=True, kw_only=True):
    """What counts for the choice of the head."""

    lease_id: str
    name: str
    tier: Tier = Tier.COMMUNITY
    kind: PriceKind = PriceKind.ON_DEMAND
    reliability: float | None = None
    up_mbps: float = 0.0
    ready_ms: int = 0


class Files(Record, frozen=True, kw_only=True):
    """What a node's Dask processes prove themselves with."""

    authority: bytes
    own: Identity

    def named(self) -> dict[str, bytes]:
        """By the names that the orders use."""
        return {"ca.pem": self.authority, "cert.pem": self.own.certificate, "key.pem": self.own.key}


def choose_head(candidates: Sequence[Candidate]) -> tuple[str, str]:
    """The node that is least likely to go away, and why it: the scheduler and the driving session live there.

    A rental that may be taken away counts most, then who runs the machine, then the marketplace's figure for its
    reliability, then how fast it sends, then how long it has been ready.
    """

    def rank(candidate: Candidate) -> tuple[bool, int, float, float, int]:
        reliability = UNKNOWN_RELIABILITY if candidate.reliability is None else candidate.reliability
        return (
            candidate.kind is PriceKind.SPOT,
            -TIER_ORDER.index(candidate.tier),
            -reliability,
            -candidate.up_mbps,
            candidate.ready_ms,
        )

    best = min(candidates, key=rank)
    if len(candidates) == 1:
        return best.lease_id, "it was the only one that was ready when it was chosen"
    reasons = []
    others = [candidate for candidate in candidates if candidate is not best]
    if best.kind is PriceKind.ON_DEMAND and any(other.kind is PriceKind.SPOT for other in others):
        reasons.append("it cannot be taken away as a spot node can")
    if any(TIER_ORDER.index(other.tier) < TIER_ORDER.index(best.tier) for other in others):
        reasons.append(f"its tier is {best.tier.value}")
    if best.reliability is not None and all((other.reliability or 0) < best.reliability for other in others):
        reasons.append(f"its reliability is {best.reliability:.3g}")
    return best.lease_id, " and ".join(reasons) or "no node was more reliable, and it was ready first"


def gpu_slots(gpu_count: int) -> list[int | None]:
    """One worker for each GPU, or one without."""
    return list(range(gpu_count)) if gpu_count > 0 else [None]


def new_port(taken: Collection[int], rng: random.Random) -> int:
    """A port that nothing of this cluster uses."""
    while True:
        port = rng.choice(PORTS)
        if port not in taken:
            return port


def tls_options() -> dict[str, str]:
    """The options that name the files of `Files.named`."""
    return {"tls-ca-file": "ca.pem", "tls-cert": "cert.pem", "tls-key": "key.pem"}


def scheduler_order(name: str, *, port: int, dashboard_port: int, files: Files, wish: DaskWish) -> StartDask:
    """The order for the head."""
    options = {"protocol": "tls", "host": LOOPBACK, "port": str(port), "preload": HEAD_MODULE}
    options |= {"dashboard-address": f"{LOOPBACK}:{dashboard_port}"} if wish.dashboard else {"no-dashboard": ""}
    failures = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": str(wish.allowed_failures)}
    return StartDask(
        role="scheduler",
        name=name,
        options=options | tls_options(),
        files=files.named(),
        environment=SCHEDULER_SETTINGS | failures | wish.environment,
    )


def worker_order(
    name: str, *, scheduler: str, port: int, nanny_port: int, gpu: int | None, cores: int, files: Files, wish: DaskWish
) -> StartDask:
    """The order for one worker. `cores` are the node's, for each of its workers; 0 where they are not known."""
    options = {
        "": scheduler,
        "host": LOOPBACK,
        "worker-port": str(port),
        "name": name,
        "no-dashboard": "",
        "death-timeout": str(DEATH_TIMEOUT_S),
        "memory-limit": wish.memory_limit,
    }
    options |= {"nanny-port": str(nanny_port)} if wish.nanny else {"no-nanny": ""}
    threads = wish.nthreads or (1 if gpu is not None else cores)
    if threads:
        options["nthreads"] = str(threads)
    if gpu is not None:
        options["resources"] = "GPU=1"
    return StartDask(
        role="worker",
        name=name,
        options=options | tls_options(),
        files=files.named(),
        environment=dict(wish.environment),
        gpu=gpu,
    )
