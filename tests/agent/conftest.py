"""One agent with one warm session for the tests that leave it usable; others start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.agent.user_side import UserSide, user_side


@pytest.fixture
async def user(tmp_path: Path) -> AsyncIterator[UserSide]:
    """A fresh agent, attached."""
    async with user_side(tmp_path / "node") as side:
        yield side
