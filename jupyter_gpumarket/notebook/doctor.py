"""`%gpu doctor`: what is in place and what is not, each with the way to repair it."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator

from jupyter_gpumarket import __version__, config
from jupyter_gpumarket.api import BrokerInfo
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import in_words, iso_utc
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook.kernel import Notebook

OK, TROUBLE, NOTE = "ok", "TROUBLE", "note"
# Minimum versions that are safe to show what a stranger's machine printed (command linker, CVE-2026-42557).
SAFE_JUPYTERLAB = (4, 5, 7)
# A clock off by more than this makes deadlines and the marketplace's bill disagree visibly.
CLOCK_TOLERANCE_S = 30.0

# A cell that prints much fills this quickly.
LITTLE_DISK_BYTES = 256 * 2**20

Row = tuple[str, str, str]


def examine(notebook: Notebook) -> Iterator[Row]:
    """Rows of (what, state, detail)."""
    yield "jupyter_gpumarket", OK, f"{__version__} on Python {platform.python_version()}"
    yield _jupyterlab()
    try:
        info = notebook.client.health()
    except GpuMarketError as error:
        yield "broker", TROUBLE, one_line(str(error), 500)
        return
    versions_agree = info.version == __version__
    since = in_words(max(0, notebook.clock.now_ms() - info.started_ms) / 1000)
    detail = f"pid {info.pid}, up {since}, {info.open_leases} open leases, {info.state_folder}"
    if not versions_agree:
        detail += f"; it is of version {info.version}: end it with `jupyter gpumarket serve --stop` and call again"
    yield "broker", OK if versions_agree else TROUBLE, detail
    for trouble in info.troubles:
        yield "journal", TROUBLE, one_line(trouble, 500)
    yield _clock(notebook, info.started_ms)
    yield _disk(info.state_folder)
    yield from _marketplaces(notebook)
    yield from _settings(notebook)
    yield from _stale_settings(info)


def _jupyterlab() -> Row:
    try:
        found = importlib.metadata.version("jupyterlab")
    except importlib.metadata.PackageNotFoundError:
        return "JupyterLab", NOTE, "not installed beside this kernel"
    parts = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if parts < SAFE_JUPYTERLAB:
        wanted = ".".join(map(str, SAFE_JUPYTERLAB))
        return "JupyterLab", TROUBLE, f"{found} has known holes; update to {wanted} or newer"
    return "JupyterLab", OK, found


def _clock(notebook: Notebook, broker_started_ms: int) -> Row:
    now_ms = notebook.clock.now_ms()
    if broker_started_ms > now_ms + CLOCK_TOLERANCE_S * 1000:
        ahead = in_words((broker_started_ms - now_ms) / 1000)
        return "clock", TROUBLE, f"went back by at least {ahead} since the broker was started; set the time"
    return "clock", OK, iso_utc(now_ms)


def _disk(state_folder: str) -> Row:
    try:
        free = shutil.disk_usage(state_folder).free
    except OSError as error:
        return "disk", TROUBLE, f"{state_folder}: {error.strerror}"
    detail = f"{free / 2**30:.1f} GiB free for journal and outputs"
    if free < LITTLE_DISK_BYTES:
        return "disk", TROUBLE, f"{detail} in {state_folder}: make room, or nothing new can be rented soon"
    return "disk", OK, detail


def _marketplaces(notebook: Notebook) -> Iterator[Row]:
    infos = notebook.client.marketplaces()
    if not any(info.usable for info in infos):
        yield "marketplaces", TROUBLE, "none is usable: `jupyter gpumarket demo` starts one on this machine"
    for info in infos:
        detail = one_line(info.message, 300)
        if info.balance is not None:
            detail = f"balance {format_usd(info.balance.amount_nusd)}; {detail}".rstrip("; ")
        yield f"marketplace {one_line(info.name, 40)}", OK if info.usable else NOTE, detail


def _stale_settings(info: BrokerInfo) -> Iterator[Row]:
    """An idle broker gives way to one with the new settings; one that has leases keeps the old ones."""
    where = config.folders()
    if config.settings_changed_ms(where) > info.started_ms:
        detail = (
            f"{where.settings_file} was changed after the broker was started: end it with "
            "`jupyter gpumarket serve --stop` (what is rented goes on), and call again"
        )
        yield "settings file", TROUBLE, detail


def _settings(notebook: Notebook) -> Iterator[Row]:
    try:
        settings = notebook.settings
    except GpuMarketError as error:
        yield "settings", TROUBLE, one_line(str(error), 500)
        return
    asks = "asks before renting" if settings.ask else "rents without asking"
    yield "settings", OK, f"{asks}; budget {settings.budget} and {settings.hours:g} h a lease"
    owner = notebook.owner()
    if not owner.notebook:
        hint = "not told by the front end: nodes are not found again after a kernel restart"
        yield "notebook", NOTE, f"{hint}; set JUPYTER_GPUMARKET_NOTEBOOK"
    else:
        yield "notebook", OK, one_line(owner.notebook, 200)
