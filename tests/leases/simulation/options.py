"""What goes wrong in one run: drawn from the seed, so that runs differ in kind and not only in luck."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """Chances are per call or per rental; times in seconds."""

    seed: int
    faulty_s: float
    lag_s: float
    slow_s: float
    lost_request: float
    lost_reply: float
    late_request: float
    doubled: float
    refused_5xx: float
    storm: float
    sold_twice: float
    dearer: float
    spot: float
    dies_booting: float
    never_boots: float
    preempted: float
    stubborn: float
    wrong_gpu: float
    node_fails: float
    link_lost: float
    cluster_fails: float
    fact_doubled: float
    journal_full: float
    crash_every_steps: int
    leases: int
    machines: int
    tells_begin: bool
    noticed: float
    node_notices: float


def drawn(seed: int) -> Options:
    """The options of a seed: each fault is off in some runs, rare in some, and frequent in others."""
    rng = random.Random(f"options {seed}")

    def chance(most: float) -> float:
        return rng.choice([0.0, most / 4, most])

    lag_s = rng.choice([0, 0, 5, 30, 120])
    return Options(
        seed=seed,
        faulty_s=rng.choice([600.0, 1800.0, 3600.0]),
        lag_s=lag_s,
        slow_s=rng.choice([0.05, 0.5, 5.0, 20.0]),
        lost_request=chance(0.2),
        lost_reply=chance(0.3),
        late_request=chance(0.2),
        doubled=chance(0.3),
        refused_5xx=chance(0.2),
        storm=chance(0.3),
        sold_twice=chance(0.3),
        dearer=chance(0.3),
        spot=chance(0.2),
        dies_booting=chance(0.3),
        never_boots=chance(0.2),
        preempted=chance(0.3),
        stubborn=chance(0.5),
        wrong_gpu=chance(0.3),
        node_fails=chance(0.2),
        link_lost=chance(0.5),
        cluster_fails=chance(0.3),
        fact_doubled=chance(0.5),
        journal_full=chance(0.05),
        crash_every_steps=rng.choice([0, 2000, 600, 200, 60]),
        leases=rng.choice([1, 2, 4]),
        machines=rng.choice([1, 3, 5]),
        tells_begin=rng.random() < 0.5,
        noticed=rng.choice([0.0, 0.5, 1.0]),
        node_notices=chance(0.2),
    )
