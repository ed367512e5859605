"""The commands and their options. Only argparse here: help must be quick."""

from __future__ import annotations

import argparse

from jupyter_gpumarket import __version__

_MARKET = "jupyter_gpumarket.cli.market"
_OFFERS = "jupyter_gpumarket.cli.offers"
_PROCESSES = "jupyter_gpumarket.cli.processes"


def build_parser() -> argparse.ArgumentParser:
    """The parser of `jupyter gpumarket`."""
    parser = argparse.ArgumentParser(
        prog="jupyter gpumarket",
        description="Rent GPUs for notebook cells; see what runs, what it cost, and give it back.",
        epilog="In a notebook: %load_ext jupyter_gpumarket, then write %%gpu on a cell.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_offers(commands)
    _add_prices(commands)
    _add_rent(commands)
    _add_running(commands)
    _add_report(commands)
    _add_doctor(commands)
    _add_processes(commands)
    return parser


_Commands = argparse._SubParsersAction  # noqa: SLF001 - argparse names no public type for it


def _command(commands: _Commands[argparse.ArgumentParser], name: str, run: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")


def _add_query(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gpu", help='names:memory:count, such as "H100|A100:80GB", "24GB..80GB", "RTX4090:24GB:2"')
    parser.add_argument("--vram", "--vram-gib", type=float, metavar="GIB", help="at least so much memory per GPU")
    parser.add_argument("--count", type=int, help="so many GPUs")
    parser.add_argument("--max-price", metavar="USD", help="dearest hourly price")
    parser.add_argument("--region", help="EU, NA, ASIA and the like, or part of the region's or country's name")
    parser.add_argument("--tier", help="this or better: community, verified, datacenter, tee or own")
    parser.add_argument("--kind", help="spot or on_demand")
    parser.add_argument("--marketplace", action="append", default=[], help="only this one (may be repeated)")


def _add_demo(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "demo",
        "jupyter_gpumarket.demo:run",
        "run the first example for real on this machine: rent, train, bring back, pay, release",
    )
    parser.add_argument("--lab", action="store_true", help="open the notebook in JupyterLab instead of running it here")
    parser.add_argument("--port", type=int, default=0, help="JupyterLab's port (default: a free one)")
    parser.add_argument("--no-browser", action="store_true", help="with --lab: only print the address")
    parser.add_argument(
        "--marketplaces",
        metavar="NAMES",
        help="instead: rent and run a cell through stand-ins of these (names with commas, or all), and compare bills",
    )
    parser.add_argument("--faults", action="store_true", help="and then make go wrong there what can go wrong")
    parser.add_argument("--folder", help="where the demo keeps its state (default: a new temporary folder)")


def _add_offers(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "offers", f"{_OFFERS}:offers", "list what can be rented now")
    _add_query(parser)
    parser.add_argument("--hours", type=float, default=1.0, help="length of the job that the job's price is for")
    parser.add_argument("--disk-gib", type=float, help="disk that the job needs (default: the offer's own)")
    parser.add_argument("--in-gib", type=float, default=0.0, help="what the job fetches")
    parser.add_argument("--out-gib", type=float, default=0.0, help="what the job sends")
    parser.add_argument(
        "--sort",
        default="price",
        help="price, price_per_gpu, price_per_vram, price_per_tflops, vram, total, cost_to_finish, reliability, saving",
    )
    parser.add_argument(
        "--explain", action="store_true", help="show the parts of the first one's price, and all filters"
    )
    parser.add_argument("--limit", type=int, default=30, help="so many rows")
    parser.add_argument("--refresh", action="store_true", help="ask all marketplaces anew")
    _add_json(parser)


def _add_prices(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "prices", f"{_OFFERS}:prices", "show how prices were, as far as they were seen")
    parser.add_argument("gpu", nargs="?", help="names:memory, such as H100 or A100:80GB")
    parser.add_argument("--days", type=float, default=30, help="only the last so many days")
    parser.add_argument("--marketplace", action="append", default=[], help="only this one (may be repeated)")
    _add_json(parser)

    parser = _command(commands, "searches", f"{_OFFERS}:searches", "list, save or drop searches that the broker keeps")
    parser.add_argument("--save", metavar="NAME", help="save the search that the other options spell")
    parser.add_argument("--drop", metavar="NAME", help="forget one")
    _add_query(parser)
    _add_json(parser)


def _add_rent(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "rent", f"{_MARKET}:rent", "rent a node")
    _add_query(parser)
    parser.add_argument("--budget", metavar="USD", help="hard limit of this lease")
    parser.add_argument("--hours", type=float, help="longest time of this lease")
    parser.add_argument("--name", default="", help="the node's name")
    parser.add_argument("--project", help="book the charges on this project")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    _add_json(parser)


def _add_running(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "ls", f"{_MARKET}:ls", "list what is rented, its state and its cost so far")
    parser.add_argument("--all", action="store_true", help="also what has ended")
    _add_json(parser)

    parser = _command(commands, "logs", f"{_MARKET}:logs", "tell a lease's story")
    parser.add_argument("lease", help="the node's name or the lease's id")
    _add_json(parser)

    parser = _command(commands, "stop", f"{_MARKET}:stop", "give nodes back, and wait until that is confirmed")
    parser.add_argument("lease", nargs="*", help="names or ids")
    parser.add_argument("--all", action="store_true", help="everything that is rented")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="S", help="wait so long for the confirmation")
    _add_json(parser)


def _add_report(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "report", "jupyter_gpumarket.cli.report:report", "report costs")
    parser.add_argument(
        "--by", default="lease", help="lease, cell, user, project, notebook, marketplace, gpu, kind or day"
    )
    parser.add_argument("--days", type=float, help="only the last so many days")
    parser.add_argument("--reconcile", action="store_true", help="compare with the marketplaces' own bills")
    parser.add_argument("--output", metavar="FILE", help="write all lines: .csv, .parquet, .html, .json or .focus.csv")
    _add_json(parser)


def _add_doctor(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands, "doctor", "jupyter_gpumarket.cli.doctor:doctor", "check settings, broker, marketplaces and keys"
    )
    _add_json(parser)


def _add_processes(commands: _Commands[argparse.ArgumentParser]) -> None:
    parser = _command(commands, "serve", f"{_PROCESSES}:serve", "run the broker in the foreground (containers, teams)")
    parser.add_argument("--stop", action="store_true", help="end the broker that runs; leases and cells go on")
    parser.set_defaults(takes_rest=False)
    for name, text in (
        ("pool", "run the registry of your own marketplace; `pool user NAME` adds a user (options: pool --help)"),
        ("host", "lend this machine through a pool's registry (options: host --help)"),
    ):
        parser = commands.add_parser(name, help=text, add_help=False)
        parser.set_defaults(run=f"{_PROCESSES}:{name}", takes_rest=True)
