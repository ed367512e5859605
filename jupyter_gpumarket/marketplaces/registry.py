"""Which marketplaces there are, and which of them this user has set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jupyter_gpumarket.config import Folders, Settings
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.marketplaces.base import Marketplace

Adapter = Callable[[Settings, Folders], Marketplace]

# One line for each marketplace; the adapter raises ConfigError (MissingCredentials) where it is not set up.
ADAPTERS: Mapping[str, Adapter] = {}


def build(settings: Settings, folders: Folders) -> dict[str, Marketplace]:
    """The marketplaces that are set up, by name."""
    return _made(settings, folders)[0]


def skipped(settings: Settings, folders: Folders) -> dict[str, str]:
    """The marketplaces that settings name and that cannot be used, each with its reason."""
    return _made(settings, folders)[1]


def _made(settings: Settings, folders: Folders) -> tuple[dict[str, Marketplace], dict[str, str]]:
    made: dict[str, Marketplace] = {}
    reasons: dict[str, str] = {}
    for name in settings.marketplaces:
        if name not in ADAPTERS:
            reasons[name] = f"there is no marketplace called {name}; known: {', '.join(sorted(ADAPTERS)) or 'none'}"
            continue
        try:
            made[name] = ADAPTERS[name](settings, folders)
        except ConfigError as error:
            reasons[name] = str(error)
    return made, reasons
