"""Seeded runs of the real machine and engine in a lying world, in virtual time.

`SEED=1234 pytest tests/leases/simulation -k replay -s` runs one seed again and prints its whole story.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.leases.simulation.controls import CONTROLS
from tests.leases.simulation.invariants import Broken, checked_run
from tests.leases.simulation.options import drawn
from tests.leases.simulation.world import World

QUICK_SEEDS = 150
ALL_SEEDS = 2500
BLOCK = 250
CONTROL_SEEDS = 300
ROOT = Path(__file__).parents[3]


def broken_seeds(first: int, last: int) -> list[str]:
    """The first lines of what went wrong, with the seeds in them."""
    found = []
    for seed in range(first, last):
        try:
            checked_run(World(drawn(seed)))
        except Broken as broken:
            found.append(str(broken).splitlines()[0])
    return found


def test_the_rules_hold_in_every_quick_seed() -> None:
    """Crashes, lies and lost messages break no rule of a lease, and everything comes to rest when they stop."""
    assert broken_seeds(0, QUICK_SEEDS) == []


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK_SEEDS, ALL_SEEDS, BLOCK))
def test_the_rules_hold_in_every_seed(first: int) -> None:
    """The same for thousands of seeds."""
    assert broken_seeds(first, min(first + BLOCK, ALL_SEEDS)) == []


@pytest.mark.parametrize("name", CONTROLS)
def test_the_harm_is_seen_when_a_defence_is_off(name: str) -> None:
    """Without the defence, some seed breaks the rule it stands for: the rules are really watched."""
    defences, rules = CONTROLS[name]
    seen: set[str] = set()
    for seed in range(CONTROL_SEEDS):
        try:
            checked_run(World(drawn(seed), defences))
        except Broken as broken:
            seen.add(broken.rule)
        if seen & rules:
            return

    pytest.fail(f"{name}: none of {rules} was broken, only {seen}")


def test_a_seed_gives_the_same_run_twice() -> None:
    """One seed, one trace, to the last step, in other processes too (with another order of hashes)."""
    seeds = [3, 17, 40]
    here = [checked_run(World(drawn(seed))).fingerprint() for seed in seeds]
    code = (
        "from tests.leases.simulation.invariants import checked_run\n"
        "from tests.leases.simulation.options import drawn\n"
        "from tests.leases.simulation.world import World\n"
        f"print(*[checked_run(World(drawn(seed))).fingerprint() for seed in {seeds}])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )

    assert told.stdout.split() == here


@pytest.mark.skipif("SEED" not in os.environ, reason="replays one seed: SEED=1234")
def test_replay() -> None:
    """Prints the story of one seed."""
    world = World(drawn(int(os.environ["SEED"])))
    try:
        checked_run(world)
    finally:
        print(*world.story, sep="\n")
