"""`doctor`: what is set up, what answers, what is missing, and what to do."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version

from jupyter_gpumarket.cli.tables import as_json, safe
from jupyter_gpumarket.client import connect
from jupyter_gpumarket.config import folders, load_settings, settings_changed_ms
from jupyter_gpumarket.errors import GpuMarketError

_PACKAGES = ("jupyter_gpumarket", "ipykernel", "dask", "distributed", "cloudpickle", "numpy", "asyncssh", "polars")


def doctor(arguments: argparse.Namespace) -> int:
    """Print one line per check; exit 1 when one fails."""
    checks: list[tuple[str, bool, str]] = [("python", sys.version_info >= (3, 11), platform.python_version())]
    checks += [("package", True, f"{name} {_version(name)}") for name in _PACKAGES]
    checks += _settings_checks() + _broker_checks()
    if arguments.json:
        print(as_json([{"check": name, "ok": ok, "detail": detail} for name, ok, detail in checks]))
    else:
        for name, ok, detail in checks:
            print(f"{'ok  ' if ok else 'FAIL'}  {name:<12} {safe(detail)}")
    return 0 if all(ok for _, ok, _ in checks) else 1


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def _settings_checks() -> list[tuple[str, bool, str]]:
    try:
        where = folders()
        settings = load_settings(where)
    except GpuMarketError as error:
        return [("settings", False, str(error))]
    return [
        ("state", True, str(where.state)),
        ("settings", True, f"{where.settings_file}{'' if where.settings_file.exists() else ' (not there: defaults)'}"),
        (
            "budget",
            True,
            f"${settings.budget} a lease, at most {settings.hours:g} h, ask before renting: {settings.ask}",
        ),
    ]


def _broker_checks() -> list[tuple[str, bool, str]]:
    try:
        with connect() as client:
            info = client.health()
            markets = client.marketplaces()
    except GpuMarketError as error:
        return [("broker", False, str(error))]
    checks = [("broker", True, f"version {info.version}, pid {info.pid}, {info.open_leases} open leases")]
    if settings_changed_ms(folders()) > info.started_ms:
        old = "the broker was started before the settings were changed; `jupyter gpumarket serve --stop` ends it"
        checks.append(("settings", False, f"{old} (what is rented goes on), the next call starts a new one"))
    if not markets:
        checks.append(("marketplace", False, "none is configured; try `jupyter gpumarket demo`"))
    return checks + [("marketplace", m.usable, f"{m.name} {m.message}".strip()) for m in markets]
