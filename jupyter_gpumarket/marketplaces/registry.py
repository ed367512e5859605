"""Which marketplaces there are, as one list of data; and the ones this user can use, built from settings and keys."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from jupyter_gpumarket.config import Folders, Secret, Settings, credential
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.marketplaces.akash import AkashMarketplace, AkashOptions
from jupyter_gpumarket.marketplaces.base import Marketplace
from jupyter_gpumarket.marketplaces.basilica import BasilicaMarketplace, BasilicaOptions
from jupyter_gpumarket.marketplaces.dispersed import DispersedMarketplace, DispersedOptions
from jupyter_gpumarket.marketplaces.hyperbolic import HyperbolicMarketplace, HyperbolicOptions
from jupyter_gpumarket.marketplaces.ionet import IonetMarketplace, IonetOptions
from jupyter_gpumarket.marketplaces.lium import LiumMarketplace, LiumOptions
from jupyter_gpumarket.marketplaces.nosana import NosanaMarketplace, NosanaOptions
from jupyter_gpumarket.marketplaces.pool import PoolMarketplace, PoolOptions
from jupyter_gpumarket.marketplaces.primeintellect import PrimeMarketplace, PrimeOptions
from jupyter_gpumarket.marketplaces.runpod import RunpodMarketplace, RunpodOptions
from jupyter_gpumarket.marketplaces.shadeform import ShadeformMarketplace, ShadeformOptions
from jupyter_gpumarket.marketplaces.targon import TargonMarketplace, TargonOptions
from jupyter_gpumarket.marketplaces.vast import VastMarketplace, VastOptions


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One marketplace: what `[marketplaces.<name>]` takes, whether it needs a key, and how it is made of both.

    `lists_without_key`: anybody may read its list, so that it can be shown before there is an account.
    """

    name: str
    options: type[msgspec.Struct]
    needs_key: bool
    factory: Callable[[Any, Secret], Marketplace]
    lists_without_key: bool = False


MARKETPLACES: tuple[Entry, ...] = (
    Entry(name="pool", options=PoolOptions, needs_key=True, factory=PoolMarketplace),
    Entry(name="vast", options=VastOptions, needs_key=True, factory=VastMarketplace),
    Entry(name="runpod", options=RunpodOptions, needs_key=True, factory=RunpodMarketplace),
    Entry(name="lium", options=LiumOptions, needs_key=True, factory=LiumMarketplace),
    Entry(name="targon", options=TargonOptions, needs_key=True, factory=TargonMarketplace),
    Entry(name="basilica", options=BasilicaOptions, needs_key=True, factory=BasilicaMarketplace),
    Entry(name="dispersed", options=DispersedOptions, needs_key=True, factory=DispersedMarketplace),
    Entry(name="primeintellect", options=PrimeOptions, needs_key=True, factory=PrimeMarketplace),
    Entry(
        name="akash", options=AkashOptions, needs_key=True, factory=AkashMarketplace, lists_without_key=True
    ),
    Entry(name="shadeform", options=ShadeformOptions, needs_key=True, factory=ShadeformMarketplace),
    Entry(name="nosana", options=NosanaOptions, needs_key=True, factory=NosanaMarketplace),
    Entry(
        name="ionet", options=IonetOptions, needs_key=True, factory=IonetMarketplace, lists_without_key=True
    ),
    Entry(
        name="hyperbolic",
        options=HyperbolicOptions,
        needs_key=True,
        factory=HyperbolicMarketplace,
        lists_without_key=True,
    ),
)  # fmt: skip


def build(settings: Settings, folders: Folders, environment: Mapping[str, str] | None = None) -> dict[str, Marketplace]:
    """The marketplaces that can be used, by name. One that cannot does not keep the others from working."""
    return _made(settings, folders, environment)[0]


def skipped(settings: Settings, folders: Folders, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The marketplaces that cannot be used, and settings that name none, each with its reason and the way out."""
    return _made(settings, folders, environment)[1]


def readers(settings: Settings) -> dict[str, Marketplace]:
    """Marketplaces whose list anybody may read, made without a key: good for `offers` and for nothing else."""
    if not settings.public_lists:
        return {}
    found: dict[str, Marketplace] = {}
    for entry in MARKETPLACES:
        if entry.lists_without_key:
            with contextlib.suppress(msgspec.ValidationError, ConfigError):
                options = msgspec.convert(settings.marketplaces.get(entry.name, {}), entry.options)
                found[entry.name] = entry.factory(options, Secret(""))
    return found


def _made(
    settings: Settings, folders: Folders, environment: Mapping[str, str] | None
) -> tuple[dict[str, Marketplace], dict[str, str]]:
    made: dict[str, Marketplace] = {}
    reasons = {name: unknown(name) for name in settings.marketplaces if name not in NAMES}
    for entry in MARKETPLACES:
        try:
            made[entry.name] = _made_one(entry, settings, folders, environment)
        except ConfigError as error:
            reasons[entry.name] = str(error)
    return made, reasons


def _made_one(entry: Entry, settings: Settings, folders: Folders, environment: Mapping[str, str] | None) -> Marketplace:
    given = settings.marketplaces.get(entry.name)
    try:
        options = msgspec.convert(given or {}, entry.options)
    except msgspec.ValidationError as error:
        state = "is not set up" if given is None else "does not fit"
        raise ConfigError(f"[marketplaces.{entry.name}] in the settings {state}: {error}") from None
    key = credential(entry.name, folders, environment) if entry.needs_key else Secret("")
    return entry.factory(options, key)


NAMES = tuple(entry.name for entry in MARKETPLACES)


def unknown(name: str) -> str:
    """Why a name in the settings is of no use."""
    near = difflib.get_close_matches(name, NAMES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(NAMES)}"
    return f"[marketplaces.{name}] in the settings names no marketplace; {hint}"
