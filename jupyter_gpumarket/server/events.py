"""Notices on Jupyter Server's event bus. Everybody who may subscribe gets every notice, so they are few and small:
they say that something has changed, and a page then asks for the rest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_gpumarket.server.sight import Notice

SCHEMAS = Path(__file__).parent / "schemas"
TOPICS = ("alert", "broker", "budget", "cost", "lease", "offers", "orphan")


def schema_id(topic: str) -> str:
    """The name of a topic's schema on the bus."""
    return f"https://events.jupyter.org/jupyter_gpumarket/{topic}/v1"


class Bus:
    """The server's event logger, with our schemas registered."""

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        for topic in TOPICS:
            if schema_id(topic) not in logger.schemas:
                logger.register_event_schema(SCHEMAS / f"{topic}.yaml")

    def tell(self, notice: Notice) -> None:
        """Send a notice to whoever listens."""
        self._logger.emit(schema_id=schema_id(notice.topic), data=notice.data)
