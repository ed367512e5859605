"""`python -m jupyter_gpumarket.pool registry | host | user`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jupyter_gpumarket.api.pool import Quota
from jupyter_gpumarket.config import folders
from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.money import usd

if TYPE_CHECKING:
    from jupyter_gpumarket.pool.registry import RegistryFile


def main(argv: list[str] | None = None) -> int:
    """Run one of them; the exit code. 2 for what the caller can put right."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # One line for each heartbeat, and for each SSH channel, is more than anybody reads.
    for chatty in ("httpx", "asyncssh"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        arguments.run(arguments)
    except (ConfigError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m jupyter_gpumarket.pool", description="Machines of your own, to rent.")
    commands = top.add_subparsers(required=True)
    add_registry(commands.add_parser("registry", help="keep the list of machines and rentals, and the bill"))
    add_host(commands.add_parser("host", help="offer this machine"))
    add_user(commands.add_parser("user", help="let somebody rent, or set what one may have at once"))
    return top


def add_registry(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="where its state lies (made 0700)")
    command.add_argument("--listen", default="127.0.0.1:0", help="address:port; port 0 for any (kept over restarts)")
    command.add_argument("--advertise", default="", help="the name or address by which others reach it")
    command.add_argument("--require-tls", action="store_true", help="TLS also on loopback")
    command.add_argument("--no-tls", action="store_true", help="never TLS; refused beyond loopback")
    command.add_argument("--heartbeat", type=float, default=3.0, metavar="SECONDS", help="how often hosts speak")
    command.add_argument("--lost-after", type=float, default=30.0, metavar="SECONDS", help="a silent host is lost")
    command.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input is closed")
    command.set_defaults(run=run_registry_command)


def add_host(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--registry", default="", metavar="URL", help="as it printed it; default: yours on this machine"
    )
    command.add_argument("--token-file", type=Path, help="file with the registry's join token (0600)")
    command.add_argument("--fingerprint", default="", help="of the registry's certificate, as it printed it")
    command.add_argument("--ca-file", type=Path, help="the registry's certificate, instead of its fingerprint")
    command.add_argument("--folder", type=Path, help="where leases and this host's key lie (made 0700)")
    command.add_argument("--price", default="0.00", metavar="DOLLARS", help="an hour of one GPU (or of the machine)")
    command.add_argument("--name", default="", help="how this machine is called in listings")
    command.add_argument("--region", default="", help="where it stands, such as eu-lab")
    command.add_argument("--country", default="", help="two letters")
    command.add_argument("--listen", default="", help="address:port for SSH; port 0 for any")
    command.add_argument("--advertise", default="", help="the address by which users reach this machine")
    command.add_argument("--split", action="store_true", help="each GPU is an offer of its own")
    command.add_argument("--login", default="", metavar="NAME", help="a user name that opens the shown key's lease")
    command.add_argument("--gpus", default="", metavar="0,2", help="offer only these GPUs")
    command.add_argument("--demo-gpu", default="", metavar="NAME:GIB", help="for demos: a GPU to be listed with")
    command.add_argument(
        "--drain", action="store_true", help="tell the host that runs here to take nobody more, and to go after --grace"
    )
    command.add_argument(
        "--grace", type=float, metavar="SECONDS", help="notice for whoever is on it, also at SIGTERM (300 with --drain)"
    )
    command.add_argument("--until-stdin-ends", action="store_true", help="stop when standard input is closed")
    command.set_defaults(run=run_host_command)


def add_user(command: argparse.ArgumentParser) -> None:
    command.add_argument("--folder", type=Path, help="the registry's folder")
    command.add_argument("name")
    command.add_argument("--rentals", type=int, help="at most so many at once")
    command.add_argument("--max-rate", metavar="DOLLARS", help="at most so much an hour, all rentals together")
    command.set_defaults(run=run_user_command)


def run_registry_command(arguments: argparse.Namespace) -> None:
    from jupyter_gpumarket.pool.registry import RegistryOptions, run_registry

    options = RegistryOptions(
        folder=registry_folder(arguments.folder),
        listen=arguments.listen,
        advertise=arguments.advertise,
        require_tls=arguments.require_tls,
        no_tls=arguments.no_tls,
        heartbeat_s=arguments.heartbeat,
        lost_after_s=arguments.lost_after,
        until_stdin_ends=arguments.until_stdin_ends,
    )
    asyncio.run(run_registry(options))


def run_host_command(arguments: argparse.Namespace) -> None:
    from jupyter_gpumarket.pool.draining import DRAIN_GRACE_S, checked_grace, drain
    from jupyter_gpumarket.pool.host import HostOptions, run_host
    from jupyter_gpumarket.pool.host_facts import DEMO_GPU

    folder = (arguments.folder or folders().state / "host").absolute()
    if arguments.drain:
        grace_s = DRAIN_GRACE_S if arguments.grace is None else arguments.grace
        pid = drain(folder, grace_s)
        sys.stdout.write(
            f"the host (process {pid}) takes nobody more, and goes in {grace_s:g} s or when nobody is there\n"
        )
        return
    if arguments.demo_gpu:
        os.environ[DEMO_GPU] = arguments.demo_gpu
    url, token_file, ca_file = arguments.registry, arguments.token_file, arguments.ca_file
    if not url:
        here = local_registry()
        url, ca_file = here.url, Path(here.ca_file) if here.ca_file else None
        token_file = token_file or registry_folder(None) / "join.token"
    if token_file is None:
        raise ConfigError("name the file with the registry's join token: --token-file join.token")
    options = HostOptions(
        registry=url.rstrip("/"),
        token_file=token_file,
        folder=folder,
        price_nusd_hour=usd(arguments.price),
        name=arguments.name,
        region=arguments.region,
        country=arguments.country,
        listen=arguments.listen,
        advertise=arguments.advertise,
        ca_file=ca_file,
        fingerprint=arguments.fingerprint,
        split=arguments.split,
        gpus=gpu_numbers(arguments.gpus),
        login=arguments.login,
        grace_s=checked_grace(arguments.grace or 0.0),
        until_stdin_ends=arguments.until_stdin_ends,
    )
    asyncio.run(run_host(options))


def run_user_command(arguments: argparse.Namespace) -> None:
    from jupyter_gpumarket.pool.registry import add_user as make_user

    rate = None if arguments.max_rate is None else usd(arguments.max_rate)
    token = make_user(
        registry_folder(arguments.folder), arguments.name, Quota(max_rentals=arguments.rentals, max_nusd_hour=rate)
    )
    sys.stdout.write(f"{token or 'changed what ' + arguments.name + ' may have'}\n")


def registry_folder(given: Path | None) -> Path:
    """Where this user's registry keeps its state, unless told otherwise."""
    return (given or folders().state / "registry").absolute()


def local_registry() -> RegistryFile:
    """The registry that this user runs on this machine.

    Raises:
        ConfigError: there is none.
    """
    from jupyter_gpumarket.pool.registry import RegistryFile

    file = registry_folder(None) / "registry.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=RegistryFile)
    except (OSError, msgspec.DecodeError):
        raise ConfigError("no registry of yours on this machine; name one with --registry URL") from None


def gpu_numbers(text: str) -> tuple[int, ...] | None:
    """`0,2` as numbers; nothing for all."""
    if not text:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--gpus {text!r} is not a list of numbers such as 0,2") from None


if __name__ == "__main__":
    sys.exit(main())
