"""An authorizer for a test: everybody may read, nobody may do more."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth import Authorizer


class OnlyReaders(Authorizer):
    """Lets only the action `read` pass."""

    def is_authorized(self, handler: Any, user: Any, action: str, resource: str) -> bool:
        """Whether it is reading."""
        return action == "read"
