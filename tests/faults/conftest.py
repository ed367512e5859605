"""One pool for this part's short tests; whoever needs to break it makes their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.sides import Side, closing
from tests.notebook.real_kernel import RealKernel
from tests.pool_fixtures import RunningPool, pools


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """Two hosts on this machine."""
    with pools() as start:
        yield start(hosts=2)


@pytest.fixture(scope="module")
def ada(lab: RunningPool) -> Iterator[Side]:
    """A user of it."""
    side = Side(lab, "ada")
    with closing(side):
        yield side


@pytest.fixture(scope="module")
def kernel(ada: Side) -> RealKernel:
    """Her notebook, which has a node."""
    kernel = ada.kernel()
    kernel.must_run("%load_ext jupyter_gpumarket")
    kernel.must_run("%%gpu --gpu none\nkept = 1")
    return kernel
