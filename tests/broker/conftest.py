"""One broker for the tests that only ask it things; those that kill it start their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jupyter_gpumarket.client import Client
from jupyter_gpumarket.config import Folders
from tests.broker.running import broker_of, folders_in


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Folders]]:
    """A running broker without marketplaces, shared by a module's tests."""
    folders = folders_in(tmp_path_factory.mktemp("broker"))
    with broker_of(folders) as client:
        yield client, folders
