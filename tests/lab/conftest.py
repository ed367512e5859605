"""One pool, one JupyterLab and one browser for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.running import Lab, built, chromium, lab_in
from tests.notebook.test_real import release_everything
from tests.pool_fixtures import RunningPool, pools


@pytest.fixture(scope="module")
def market() -> Iterator[RunningPool]:
    """Two machines that can be rented, and in the end a look that nothing is."""
    with pools() as start:
        running = start(hosts=1)
        running.add_host(price="0.50")
        yield running
        release_everything(running)


@pytest.fixture(scope="module")
def lab(market: RunningPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder: Path = tmp_path_factory.mktemp("lab")
    with lab_in(folder, market.home, extension=built()) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started
