"""Servers that the tests of this part share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.nodes import NodeLink
from tests.nodes.openssh import Sshd


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd").start()
    yield server
    server.stop()


@pytest.fixture
async def link(sshd: Sshd) -> AsyncIterator[NodeLink]:
    link = sshd.link()
    await link.connect()
    yield link
    await link.aclose()
