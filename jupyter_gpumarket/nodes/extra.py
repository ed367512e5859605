"""Packages that the user's own code needs and a node lacks: looked for, and brought, beside the agent's own.

They go into a folder of the lease that is on `sys.path` before the image's own packages, without what they need in
turn: the user's side has listed that too, at the versions that it has. So no installer decides anything, and torch is
never pulled in by something small. The folder is replaced as a whole when all of it is there.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from jupyter_gpumarket.api import NodeSystem, PackagePin, PackageThere
from jupyter_gpumarket.errors import CommandFailed, NodeError
from jupyter_gpumarket.nodes import versions
from jupyter_gpumarket.nodes.link import NodeLink
from jupyter_gpumarket.nodes.orders import Answer, order
from jupyter_gpumarket.nodes.packages import NodePlatform, fetch
from jupyter_gpumarket.nodes.plan import Installed, node_path

LOOK_TIMEOUT_S = 60
INSTALL_TIMEOUT_S = 600
_VERSION = re.compile(r"[0-9][A-Za-z0-9.+!_-]{0,60}")


class VersionsAnswer(Answer, frozen=True, kw_only=True):
    """What the interpreter that runs cells finds."""

    machine: str = ""
    system: str = ""
    libc: str = ""
    packages: dict[str, str] = {}


class PackagesAnswer(Answer, frozen=True, kw_only=True):
    """The folder is there, whole."""

    folder: str = ""


async def look(
    link: NodeLink, lease_id: str, installed: Installed, pins: Iterable[PackagePin]
) -> tuple[tuple[PackageThere, ...], NodeSystem]:
    """What the node has of these, and what that means.

    Raises:
        NodeError: it cannot be found out.
        Unreachable: the link was lost.
    """
    wanted = tuple(pins)
    there = await _asked(link, lease_id, installed, wanted)
    system = NodeSystem(lease_id=lease_id, system=there.system[:40], machine=there.machine[:40])
    found = []
    for pin in wanted:
        version = version_in(there.packages.get(pin.name, ""))
        verdict = versions.verdict_on(pin.name, pin.version, version, size=pin.size)
        found.append(PackageThere(lease_id=lease_id, name=pin.name, version=version, verdict=verdict))
    return tuple(found), system


async def bring(
    link: NodeLink, lease_id: str, installed: Installed, pins: Iterable[PackagePin], where: tuple[str, ...]
) -> None:
    """Install those that the node lacks: from its own index, else fetched here and sent. All or none.

    Raises:
        NodeError: names packages, node, reason and what to do; nothing has changed on the node.
        Unreachable: the link was lost; run it again.
    """
    wanted = tuple(pins)
    there = await _asked(link, lease_id, installed, wanted)
    lacking = {
        pin.name: pin.version
        for pin in wanted
        if versions.verdict_on(pin.name, pin.version, version_in(there.packages.get(pin.name, "")), size=pin.size)
        in ("missing", "differs")
    }
    if not lacking:
        return
    what = {
        "step": "packages",
        "lease_id": lease_id,
        "python": node_path(installed.python),
        "pins": [f"{name}=={version}" for name, version in sorted(lacking.items())],
        "limit_s": INSTALL_TIMEOUT_S,
    }
    try:
        await _send(link, what)
    except CommandFailed as error:
        minor = ".".join(installed.python_version.split(".")[:2])
        target = NodePlatform(system=there.system, machine=there.machine, libc=there.libc, python_minor=minor)
        try:
            archive = await fetch(lacking, target, alone=True, where=where)
            await link.put(archive, f"{node_path(installed.folder)}/packages.zip")
            await _send(link, {**what, "sha256": hashlib.sha256(archive).hexdigest()})
        except CommandFailed as from_here:
            raise NodeError(failure(link.name, lacking, on_node=str(error), from_here=str(from_here))) from None


def version_in(text: str) -> str:
    """A version that a node told, if it looks like one."""
    return text if _VERSION.fullmatch(text) else ""


def failure(node: str, lacking: dict[str, str], *, on_node: str, from_here: str) -> str:
    """What could not be brought where, why, and the way out."""
    told = ", ".join(f"{name} {version}" for name, version in sorted(lacking.items()))
    return (
        f"{told} could not be brought to {node}, and nothing was changed there. By the node's own index: "
        f"{on_node[-600:]}. From here: {from_here}. Use an image that has them, install them yourself "
        "(`!pip install ...` in a %%gpu cell), or sync without packages (--no-packages)"
    )


async def _asked(link: NodeLink, lease_id: str, installed: Installed, pins: tuple[PackagePin, ...]) -> VersionsAnswer:
    python = node_path(installed.python)
    what = {"step": "versions", "lease_id": lease_id, "python": python, "names": [pin.name for pin in pins]}
    return await order(link, "steps", what, VersionsAnswer, timeout_s=LOOK_TIMEOUT_S, python=python)


async def _send(link: NodeLink, what: dict[str, object]) -> PackagesAnswer:
    timeout_s = 3 * INSTALL_TIMEOUT_S + 30
    return await order(link, "steps", what, PackagesAnswer, timeout_s=timeout_s, python=str(what["python"]))
