"""A cell really runs through every marketplace's own API, and is really billed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket.demo.markets import FaultRow, Row
from jupyter_gpumarket.simulator.process import STAND_INS
from tests.demo.test_demo import poll, still_there

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Told(msgspec.Struct):
    rents: list[Row]
    faults: list[FaultRow]


def demo(folder: Path, *options: str) -> tuple[int, str, Told]:
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket", "demo", "--folder", str(folder), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=550,
        check=False,
        env={**os.environ, "JUPYTER_GPUMARKET_BROKER_IDLE_S": "5"},
    )
    return done.returncode, done.stdout, msgspec.json.decode((folder / "markets.json").read_bytes(), type=Told)


def test_a_cell_runs_through_every_marketplace_and_the_bills_agree(tmp_path: Path) -> None:
    """Each stand-in's machine is rented, reached, used, given back, and billed as we reckon; nothing is left."""
    code, shown, told = demo(tmp_path / "demo", "--marketplaces", "all")

    assert [row.marketplace for row in told.rents] == list(STAND_INS)
    assert [row for row in told.rents if not row.is_good] == [], shown
    assert all(row.theirs_nusd > 0 and abs(row.gap_nusd) <= row.allowed_nusd for row in told.rents)
    assert code == 0, shown
    poll(lambda: not still_there(tmp_path / "demo"), "the end of every process of the demo", 30)


def test_an_unknown_marketplace_is_named(tmp_path: Path) -> None:
    """The message lists those that there are; nothing is started."""
    done = subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket", "demo", "--folder", str(tmp_path), "--marketplaces", "vest"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 2
    assert "vast" in done.stderr
    assert "Traceback" not in done.stderr
