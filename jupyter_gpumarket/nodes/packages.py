"""Packages for a node without an internet of its own: fetched on the user's side for the node's platform, as one zip.

Three sources, tried in this order: uv, pip (both from the user's own index or cache), and, when the node's platform is
the same as this one, the files that are installed here. Nothing is built: only wheels for that platform are taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import platform
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from jupyter_gpumarket.errors import CommandFailed
from jupyter_gpumarket.models import Record
from jupyter_gpumarket.nodes.address import last_lines

FETCH_TIMEOUT_S = 600
# Newest first; pip takes a wheel for any of them.
_MANYLINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")


class NodePlatform(Record, frozen=True, kw_only=True):
    """For what wheels are needed."""

    system: str
    machine: str
    libc: str
    python_minor: str

    @classmethod
    def here(cls) -> NodePlatform:
        """This machine's own."""
        return cls(
            system=platform.system(),
            machine=platform.machine(),
            libc="-".join(platform.libc_ver()),
            python_minor=f"{sys.version_info.major}.{sys.version_info.minor}",
        )


async def fetch(
    pins: Mapping[str, str], target: NodePlatform, *, alone: bool = False, where: tuple[str, ...] = ()
) -> bytes:
    """A zip of an installed tree with these packages and what they need; `alone`: without what they need.

    `where`: folders in which they are installed here, beside those of this process.

    Raises:
        CommandFailed: none of the sources has them, with the last words of each.
    """
    wanted = [f"{name}=={version}" for name, version in sorted(pins.items())]
    words: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gpumarket-packages-") as scratch:
        for index, argv in enumerate(commands(wanted, target)):
            tree = Path(scratch) / str(index)
            said = await _said([*argv, *(["--no-deps"] if alone else []), "--target", str(tree)])
            if said is None:
                return await asyncio.to_thread(_zip_tree, tree)
            words.append(said)
    if target == NodePlatform.here():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found = _as_pinned(pins, where) if alone else closure(pins)
            return await asyncio.to_thread(_zip_installed, found)
    raise CommandFailed(
        f"the packages for {target.system} {target.machine}, Python {target.python_minor} could not be fetched here "
        "either; connect this machine or the node to a package index",
        last_lines="\n".join(words),
    )


def commands(wanted: list[str], target: NodePlatform) -> Iterator[list[str]]:
    """The installers that are here, with their arguments for the node's platform."""
    if target.system != "Linux" or not target.libc.startswith("glibc"):
        return
    uv = shutil.which("uv")
    if uv:
        where = ["--python-platform", f"{target.machine}-manylinux_2_28", "--python-version", target.python_minor]
        yield [uv, "pip", "install", "--quiet", "--only-binary", ":all:", "--python", sys.executable, *where, *wanted]
    if importlib.util.find_spec("pip") is not None:
        platforms = [part for name in _MANYLINUX for part in ("--platform", f"{name}_{target.machine}")]
        options = ["--quiet", "--only-binary=:all:", "--implementation", "cp", "--python-version", target.python_minor]
        quick = ["--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "15"]
        yield [sys.executable, "-m", "pip", "install", *quick, *options, *platforms, *wanted]


async def _said(argv: list[str]) -> str | None:
    """None when it worked, else its last lines."""
    process = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"{argv[0]} did not end within {FETCH_TIMEOUT_S} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return None if process.returncode == 0 else last_lines(output, 4)


def _zip_tree(tree: Path) -> bytes:
    return _zipped((path, str(path.relative_to(tree))) for path in sorted(tree.rglob("*")) if path.is_file())


def _as_pinned(pins: Mapping[str, str], where: tuple[str, ...]) -> list[metadata.Distribution]:
    """These distributions, at these versions.

    Raises:
        PackageNotFoundError: one of them is not installed here so.
    """
    found = []
    for name, version in pins.items():
        places = [*where, *sys.path]
        fitting = [one for one in metadata.distributions(name=name, path=places) if one.version == version]
        if not fitting:
            raise metadata.PackageNotFoundError(name)
        found.append(fitting[0])
    return found


def _zip_installed(distributions: Iterable[metadata.Distribution]) -> bytes:
    """The files of these distributions, as they are installed here."""
    files: dict[str, Path] = {}
    for distribution in distributions:
        for file in distribution.files or ():
            path = Path(str(file.locate()))
            if ".." not in file.parts and "__pycache__" not in file.parts and path.is_file():
                files[file.as_posix()] = path
    return _zipped((path, name) for name, path in sorted(files.items()))


def closure(names: Iterable[str]) -> list[metadata.Distribution]:
    """These distributions and what they need here, each once.

    Raises:
        PackageNotFoundError: one of `names` is not installed.
    """
    found: dict[str, metadata.Distribution] = {}
    waiting = [(name, True) for name in names]
    while waiting:
        name, must = waiting.pop()
        key = name.casefold().replace("_", "-")
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if must:
                raise
            continue
        waiting += [(needed, False) for needed in _needed(found[key])]
    return list(found.values())


def _needed(distribution: metadata.Distribution) -> Iterator[str]:
    for line in distribution.requires or ():
        with contextlib.suppress(InvalidRequirement):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                yield requirement.name


def _zipped(files: Iterable[tuple[Path, str]]) -> bytes:
    with tempfile.TemporaryFile() as memory:
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path, name in files:
                archive.write(path, name)
        memory.seek(0)
        return memory.read()
