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

Check = tuple[str, bool | None, str]
"""What was looked at, whether it is right (None: not in use, which is no fault), and the detail."""

_MARKS = {True: "ok  ", False: "FAIL", None: "off "}
_PACKAGES = ("jupyter_gpumarket", "ipykernel", "dask", "distributed", "cloudpickle", "numpy", "asyncssh", "polars")


def doctor(arguments: argparse.Namespace) -> int:
    """Print one line per check; exit 1 when one fails."""
    checks: list[Check] = [("python", sys.version_info >= (3, 11), platform.python_version())]
    checks += [("package", True, f"{name} {_version(name)}") for name in _PACKAGES]
    checks += _settings_checks() + _broker_checks()
    if arguments.json:
        print(as_json([{"check": name, "ok": ok, "detail": detail} for name, ok, detail in checks]))
    else:
        for name, ok, detail in checks:
            print(f"{_MARKS[ok]}  {name:<12} {safe(detail)}")
    return 1 if any(ok is False for _, ok, _ in checks) else 0


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed as a package"


def _settings_checks() -> list[Check]:
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


def _broker_checks() -> list[Check]:
    try:
        with connect() as client:
            info = client.health()
            markets = client.marketplaces()
    except GpuMarketError as error:
        return [("broker", False, str(error))]
    checks: list[Check] = [("broker", True, f"version {info.version}, pid {info.pid}, {info.open_leases} open leases")]
    checks += [("journal", False, trouble) for trouble in info.troubles]
    if settings_changed_ms(folders()) > info.started_ms:
        old = "the broker was started before the settings were changed; `jupyter gpumarket serve --stop` ends it"
        checks.append(("settings", False, f"{old} (what is rented goes on), the next call starts a new one"))
    wanted = set(load_settings(folders()).marketplaces)
    for market in markets:
        ok = market.usable or (False if market.name in wanted else None)
        checks.append(("marketplace", ok, f"{market.name} {market.message}".strip()))
    if not any(market.usable for market in markets):
        checks.append(("marketplace", False, "none can be used; `jupyter gpumarket demo` starts one on this machine"))
    return checks
