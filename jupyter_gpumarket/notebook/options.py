"""What stands behind `%%gpu`: its arguments, read into one record with exact amounts and times."""

from __future__ import annotations

import argparse
import keyword
import re
import shlex
from typing import Any, NoReturn

import msgspec

from jupyter_gpumarket.config import Settings
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import OfferQuery
from jupyter_gpumarket.money import usd

MAX_NODES = 1000


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be rented, if something has to be, and within which limits. `hours_s` is in seconds."""

    query: OfferQuery = OfferQuery()
    budget_nusd: int
    max_s: int
    name: str = ""
    yes: bool = False
    trust: bool = False


class MapOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`--map item=items` and what goes with it. `resume`: a map's id, or "same" for the last one of the same cell."""

    item_name: str
    items: str
    slots: int | None = None
    retries: int = 0
    verify_ppm: int = 0
    tolerance: float = 0.0
    resume: str = ""


class SyncOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`--sync [PATHS]`. `paths` empty: what the cell and this kernel use of the user's own code."""

    paths: tuple[str, ...] = ()
    packages: bool = True
    yes: bool = False


class CellOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One `%%gpu` line, read."""

    wish: Wish
    node: str = ""
    new: bool = False
    on_all: bool = False
    session: str = "main"
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    timeout_s: float | None = None
    detach: bool = False
    dry_run: bool = False
    project: str = ""
    map: MapOptions | None = None
    sync: SyncOptions | None = None


class Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        """Raises BadRequest with the nearest way to help."""
        raise BadRequest(f"{self.prog}: {message}; `{self.prog} --help` tells what it takes")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:  # noqa: ARG002 -- argparse's signature
        """Help was shown; there is nothing more to do."""
        raise HelpShown(message or "")


class HelpShown(Exception):
    """`--help` was given and answered."""


def add_cell_arguments(parser: Any) -> None:
    """The arguments of `%%gpu`."""
    add_wish_arguments(parser)
    add_limit_arguments(parser)
    parser.add_argument("--node", metavar="NAME", help="run on this node of yours")
    parser.add_argument("--new", action="store_true", help="rent another node for this cell and the next ones")
    parser.add_argument("--on", metavar="all", help="'all': run on every node of this notebook")
    parser.add_argument("--session", default="main", help="the remote kernel to use on the node (default: main)")
    parser.add_argument("-i", "--input", action="append", metavar="X,Y", help="variables to bring in")
    parser.add_argument("-o", "--output", action="append", metavar="Z", help="variables to bring back")
    parser.add_argument("--timeout", metavar="TIME", help="interrupt the cell after so long: 20m, 90s, 1h30m")
    parser.add_argument("--detach", action="store_true", help="do not wait; `%%gpu attach` shows the output later")
    parser.add_argument("--dry-run", action="store_true", help="show what would be rented; nothing is spent")
    parser.add_argument("--project", help="book the costs on this project")
    add_sync_arguments(parser)
    add_map_arguments(parser)


def add_sync_arguments(parser: Any) -> None:
    """The arguments about the user's own modules; shared by `%%gpu` and `%gpu cluster`."""
    parser.add_argument(
        "--sync", nargs="?", const="", metavar="PATHS", help="bring your own modules, and packages that they need"
    )
    parser.add_argument("--no-sync", action="store_true", help="do not, though the setting `sync` says so")
    parser.add_argument("--no-packages", action="store_true", help="with --sync: modules only")


def add_map_arguments(parser: Any) -> None:
    """The arguments of `%%gpu --map`."""
    parser.add_argument("--map", metavar="ITEM=ITEMS", help="run the cell once for each of ITEMS, named ITEM in it")
    parser.add_argument("--slots", type=int, metavar="N", help="with --map: so many at once on each node")
    parser.add_argument("--retries", type=int, metavar="N", help="with --map: so many more tries after an error")
    parser.add_argument("--verify", metavar="SHARE", help="with --map: run this share again on another machine: 0.05")
    parser.add_argument("--tolerance", metavar="T", help="with --verify: what two runs may differ by (default: 0)")
    parser.add_argument(
        "--resume", nargs="?", const="same", metavar="ID", help="with --map: go on with what is unfinished"
    )


def add_wish_arguments(parser: Any) -> None:
    """The arguments that say what to rent; shared by `%%gpu`, `%gpu rent` and `%gpu offers`."""
    parser.add_argument("--gpu", help='which GPU: "H100|A100:80GB", "24GB..80GB", "L40S:48GB:2", "any" or "none"')
    parser.add_argument("--vram", type=float, metavar="GIB", help="at least so much memory per GPU")
    parser.add_argument("--count", type=int, metavar="N", help="so many GPUs in one machine")
    parser.add_argument("--max-price", metavar="USD", help="dearest price per hour")
    parser.add_argument("--marketplace", action="append", metavar="NAME", help="only there; may be repeated")
    parser.add_argument("--region", help="only in this region or country")
    parser.add_argument("--hours", metavar="H", help="longest time of the lease")


def add_limit_arguments(parser: Any) -> None:
    """The arguments that limit and name a lease."""
    parser.add_argument("--budget", metavar="USD", help="hard limit of the lease")
    parser.add_argument("--name", help="the node's name")
    parser.add_argument("--yes", "-y", action="store_true", help="rent without asking")
    parser.add_argument("--trust", action="store_true", help="the node is your own: show its output unchanged")


def query_from(arguments: argparse.Namespace, settings: Settings) -> OfferQuery:
    """What to look for.

    Raises:
        BadRequest: an amount or a count that cannot be read.
    """
    price = arguments.max_price or settings.max_price
    if arguments.count is not None and arguments.count < 0:
        raise BadRequest(f"--count {arguments.count}: a machine cannot have fewer than no GPUs")
    return OfferQuery(
        gpu=arguments.gpu,
        vram_gib=arguments.vram,
        gpu_count=arguments.count,
        max_price_nusd_hour=money("--max-price", price) if price else None,
        region=arguments.region,
        marketplaces=tuple(listed(arguments.marketplace)),
    )


def wish_from(arguments: argparse.Namespace, settings: Settings) -> Wish:
    """What to rent, within which limits; what was not told comes from the settings."""
    hours = settings.hours if arguments.hours is None else hours_from(arguments.hours)
    return Wish(
        query=query_from(arguments, settings),
        budget_nusd=money("--budget", arguments.budget or settings.budget),
        max_s=round(hours * 3600),
        name=arguments.name or "",
        yes=arguments.yes or not settings.ask,
        trust=arguments.trust,
    )


def cell_options(arguments: argparse.Namespace, settings: Settings) -> CellOptions:
    """A `%%gpu` line.

    Raises:
        BadRequest: names the argument and what it takes.
    """
    if arguments.node and arguments.new:
        raise BadRequest("--node names a node that runs, --new rents another one: use one of them")
    if arguments.on not in (None, "all"):
        raise BadRequest(f"--on {arguments.on}: only 'all' is known; a single node is named by --node")
    return CellOptions(
        wish=wish_from(arguments, settings),
        node=arguments.node or "",
        new=arguments.new,
        on_all=arguments.on == "all",
        session=session_name(arguments.session),
        inputs=names("-i", arguments.input),
        outputs=names("-o", arguments.output),
        timeout_s=duration_s(arguments.timeout) if arguments.timeout else None,
        detach=arguments.detach,
        dry_run=arguments.dry_run,
        project=arguments.project or settings.project,
        map=map_options(arguments),
        sync=sync_options(arguments, settings),
    )


def map_options(arguments: argparse.Namespace) -> MapOptions | None:
    """What of a line is about a map; None without `--map`.

    Raises:
        BadRequest: names the argument and what it takes.
    """
    if not arguments.map:
        for name in ("slots", "retries", "verify", "tolerance", "resume"):
            if getattr(arguments, name) is not None:
                raise BadRequest(f"--{name} is for maps: add --map item=items")
        return None
    name, sign, items = arguments.map.partition("=")
    if not sign or not name.strip().isidentifier() or keyword.iskeyword(name.strip()) or not items.strip():
        raise BadRequest(f"--map {arguments.map}: write item=items, a new name and what to go through")
    if len(names("-o", arguments.output)) > 1:
        raise BadRequest("-o: a map has one result, the list of what its items gave")
    if arguments.on or arguments.session != "main":
        raise BadRequest("--map runs on all nodes of the cluster, in workers of its own: not with --on or --session")
    slots, retries = arguments.slots, arguments.retries or 0
    if retries < 0 or (slots is not None and not 0 < slots <= 256):
        raise BadRequest("--slots takes 1 to 256, --retries takes 0 or more")
    return MapOptions(
        item_name=name.strip(),
        items=items.strip(),
        slots=slots,
        retries=retries,
        verify_ppm=round(_number("--verify", arguments.verify, 1.0) * 1_000_000),
        tolerance=_number("--tolerance", arguments.tolerance, 1e300),
        resume=arguments.resume or "",
    )


def sync_options(arguments: argparse.Namespace, settings: Settings) -> SyncOptions | None:
    """What of a line is about the user's own modules; None where nothing is to be synced.

    Raises:
        BadRequest: it is wanted and not wanted, or a path is empty.
    """
    given: str | None = arguments.sync
    if given is not None and arguments.no_sync:
        raise BadRequest("--sync and --no-sync: use one of them")
    if given is None and (arguments.no_sync or not settings.sync):
        return None
    paths = tuple(part.strip() for part in given.split(",")) if given else ()
    if any(not path for path in paths):
        raise BadRequest(f"--sync {given}: write paths or names of modules with commas between them")
    return SyncOptions(paths=paths, packages=not arguments.no_packages, yes=arguments.yes or not settings.ask)


def _number(argument: str, text: str | None, most: float) -> float:
    try:
        number = float(text or 0)
    except ValueError:
        number = -1.0
    if not 0 <= number <= most:
        raise BadRequest(f"{argument} {text}: a number from 0" + (" to 1" if most == 1 else " up"))
    return number


def split(line: str) -> list[str]:
    """The words of a magic's line; quotes hold words together.

    Raises:
        BadRequest: a quote that does not end.
    """
    try:
        return shlex.split(line)
    except ValueError as error:
        raise BadRequest(f"cannot read {line!r}: {error}") from None


def money(argument: str, text: str) -> int:
    """An amount in nano-dollars, above zero.

    Raises:
        BadRequest: names the argument.
    """
    try:
        amount = usd(text)
    except ValueError as error:
        raise BadRequest(f"{argument}: {error}") from None
    if amount <= 0:
        raise BadRequest(f"{argument} {text}: an amount above zero is needed")
    return amount


_SESSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}\Z")
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?\Z", re.IGNORECASE)


def duration_s(text: str) -> float:
    """`20m`, `90s`, `1h30m`, or plain seconds.

    Raises:
        BadRequest: not such a time, or zero.
    """
    found = _DURATION.match(text.strip().replace(" ", ""))
    hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
    total = hours * 3600 + minutes * 60 + seconds
    if total <= 0:
        raise BadRequest(f"--timeout {text}: write a time like 20m, 90s or 1h30m")
    return total


def names(argument: str, given: list[str] | None) -> tuple[str, ...]:
    """Variable names, separated by commas.

    Raises:
        BadRequest: one is no Python name.
    """
    found = tuple(dict.fromkeys(listed(given)))
    for name in found:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise BadRequest(f"{argument} {name}: not the name of a variable")
    return found


def session_name(text: str) -> str:
    """The name of a remote kernel.

    Raises:
        BadRequest: a node would refuse it.
    """
    if not _SESSION.match(text):
        raise BadRequest(f"--session {text}: letters, digits, '_', '-' and '.', at most 60 of them")
    return text


def listed(given: list[str] | None) -> list[str]:
    """`["a,b", "c"]` as `["a", "b", "c"]`."""
    return [part.strip() for text in given or [] for part in text.split(",") if part.strip()]


def hours_from(text: str) -> float:
    """A number of hours, at most a year.

    Raises:
        BadRequest: not such a number.
    """
    try:
        hours = float(text)
    except ValueError:
        raise BadRequest(f"--hours {text}: write a number like 2 or 0.5") from None
    if not 0 < hours <= 24 * 365:
        raise BadRequest(f"--hours {text}: above 0 and at most a year")
    return hours


def said_budget(budget: str | int | None) -> int:
    """The budget, which is never guessed: whoever says it agrees to spend so much."""
    if budget is None:
        raise BadRequest(
            "GPUCluster rents machines: say what all of them together may cost, as in budget='10' (dollars; for "
            "dask-labextension in labextension.factory.kwargs). With a name alone a living cluster is found again"
        )
    if isinstance(budget, float):
        raise BadRequest(f"budget: write {budget} as text, as in budget='{budget}', so that it is exact")
    return usd(str(budget))


def node_count(text: str | int) -> int:
    """How many nodes a new cluster begins with.

    Raises:
        BadRequest: no whole number, or one that no cluster can begin with.
    """
    count = int(text) if isinstance(text, int) or text.isdigit() else 0
    if isinstance(text, bool) or not 1 <= count <= MAX_NODES:
        raise BadRequest(
            f"a cluster of {text!r} nodes: it begins with 1 to {MAX_NODES} of them, as in `%gpu cluster 4` or "
            "gm.cluster(4, budget='10'); the scheduler runs on one of them"
        )
    return count
