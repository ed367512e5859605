"""What a machine offers of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.pool.host_facts import Gpu, Machine, look, offers_of

A100 = tuple(Gpu(index=n, name="NVIDIA A100-SXM4-80GB", vram_gib=80.0) for n in range(4))
SERVER = Machine(
    gpus=A100, driver="570.1", cuda="12.8", cpu_model="EPYC", cpu_cores=64, memory_gib=512.0, disk_gib=1000.0
)


def test_a_whole_machine_is_one_offer() -> None:
    """All GPUs together, at the price of all of them."""
    (offer,) = offers_of(SERVER, "h1", price_nusd_hour=10)

    assert (offer.facts.gpu_count, offer.gpus, offer.price_nusd_hour) == (4, (0, 1, 2, 3), 40)
    assert (offer.facts.cpu_cores, offer.facts.memory_gib, offer.facts.vram_gib) == (64, 512.0, 80.0)


def test_split_shares_the_machine() -> None:
    """Each GPU by itself, with its share of everything else; no GPU twice."""
    offers = offers_of(SERVER, "h1", price_nusd_hour=10, split=True)

    assert [offer.gpus for offer in offers] == [(0,), (1,), (2,), (3,)]
    assert len({offer.offer_id for offer in offers}) == 4
    assert all(offer.facts.cpu_cores == 16 and offer.facts.memory_gib == 128.0 for offer in offers)
    assert all(offer.price_nusd_hour == 10 and offer.offer_id.startswith("h1.") for offer in offers)


def test_only_the_chosen_gpus_are_offered() -> None:
    """`--gpus 1,3` offers these two; one that is not there is named."""
    (offer,) = offers_of(SERVER, "h1", price_nusd_hour=10, only=(1, 3))
    with pytest.raises(ConfigError, match="GPU 7"):
        offers_of(SERVER, "h1", price_nusd_hour=10, only=(1, 7))

    assert offer.gpus == (1, 3)


def test_a_machine_without_gpus_says_so() -> None:
    """An honest CPU offer: no GPU, no VRAM, no driver."""
    machine = Machine(gpus=(), driver="", cuda="", cpu_model="EPYC", cpu_cores=8, memory_gib=32.0, disk_gib=100.0)
    (offer,) = offers_of(machine, "h1", price_nusd_hour=10, split=True)

    assert offer.offer_id == "h1.cpu"
    assert (offer.facts.gpu_count, offer.facts.vram_gib, offer.facts.driver, offer.gpus) == (0, 0.0, "", ())


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    """Cores, memory and disk of the machine that runs the tests are positive and plausible."""
    machine = look(tmp_path)

    assert 1 <= machine.cpu_cores <= 4096
    assert 0.1 < machine.memory_gib < 100_000
    assert machine.disk_gib > 0
    assert machine.cpu_model


def test_processes_are_found_without_proc() -> None:
    """Where there is no /proc, `ps` tells the same tree: this process and its parent are in it."""
    import os

    from jupyter_gpumarket.pool.supervisor import living, living_by_ps

    pair = (os.getpid(), os.getppid())

    assert pair in living_by_ps()
    assert pair in living()
