"""Which packages a node needs for the user's own code: from imports to distributions, and what of it is to be done.

The plan lists everything that would be installed, with what that needs in turn, at the versions of this side. What a
node has in the same first two numbers stays; what is heavy, or decided by set-up, stays in any version and is told.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from jupyter_gpumarket.api import NodeSystem, PackagePin, PackagesFound, PackageThere
from jupyter_gpumarket.notebook.data import size_words
from jupyter_gpumarket.notebook.stage import Table

OURSELVES = "jupyter-gpumarket"
EDITABLE = "direct_url.json"


class Installed(NamedTuple):
    """A distribution of this side."""

    name: str
    version: str
    size: int
    needs: tuple[Requirement, ...]
    is_editable: bool = False


class Plan(NamedTuple):
    """What to install, and what to tell."""

    install: tuple[PackagePin, ...]
    reasons: dict[str, str]
    remarks: tuple[str, ...]
    replaces: bool

    @property
    def size(self) -> int:
        """Bytes as they are installed here."""
        return sum(pin.size for pin in self.install)

    def table(self) -> Table:
        """For people."""
        rows = tuple((pin.name, pin.version, size_words(pin.size), self.reasons[pin.name]) for pin in self.install)
        title = (
            f"{len(rows)} packages to install on the nodes ({size_words(self.size)} installed), from a node's own "
            "index, else from here"
        )
        return Table(title=title, headers=("package", "version", "size", "why"), rows=rows, right=frozenset({2}))


def installed(name: str) -> Installed | None:
    """A distribution as it is here; None where it is not."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    needs = []
    for line in found.requires or ():
        with contextlib.suppress(InvalidRequirement):
            needs.append(Requirement(line))
    size = sum(file.size or 0 for file in found.files or ())
    is_editable = '"editable": true' in (found.read_text(EDITABLE) or "")
    return Installed(canonicalize_name(name), found.version, size, tuple(needs), is_editable)


class Shelf:
    """The distributions that matter, each looked at once."""

    def __init__(
        self,
        look: Callable[[str], Installed | None] = installed,
        modules: Callable[[], Mapping[str, Sequence[str]]] = metadata.packages_distributions,
    ) -> None:
        self._look = look
        self._modules = modules
        self._of_modules: Mapping[str, Sequence[str]] | None = None
        self._known: dict[str, Installed | None] = {}

    def of_modules(self, modules: Iterable[str]) -> set[str]:
        """The distributions that top-level modules come from, as they are installed here."""
        wanted = set(modules)
        if wanted and self._of_modules is None:
            self._of_modules = self._modules()
        known = self._of_modules or {}
        found: set[str] = {canonicalize_name(name) for module in wanted for name in known.get(module, ())}
        return found - {OURSELVES}

    def get(self, name: str) -> Installed | None:
        """A distribution, or None where it is not installed here."""
        name = canonicalize_name(name)
        if name not in self._known:
            self._known[name] = self._look(name)
        return self._known[name]

    def closure(self, names: Iterable[str]) -> tuple[PackagePin, ...]:
        """These and all that they may need, as far as it is here."""
        found: dict[str, PackagePin] = {}
        waiting = sorted(names)
        while waiting:
            one = self.get(waiting.pop())
            if one is None or one.name in found or one.name == OURSELVES:
                continue
            found[one.name] = PackagePin(name=one.name, version=one.version, size=one.size)
            waiting += [need.name for need in one.needs if _applies(need, None)]
        return tuple(found.values())


def plan(direct: Iterable[str], shelf: Shelf, found: PackagesFound) -> Plan:
    """What to install on which reasons, over all nodes. Pure."""
    install: dict[str, PackagePin] = {}
    reasons: dict[str, str] = {}
    remarks: dict[str, str] = {}
    there: dict[str, dict[str, PackageThere]] = {}
    for one in found.there:
        there.setdefault(one.lease_id, {})[one.name] = one
    for system in found.systems:
        _plan_node(sorted(direct), shelf, system, there.get(system.lease_id, {}), (install, reasons, remarks))
    replaces = any(one.name in install and one.version for one in found.there)
    pins = tuple(install[name] for name in sorted(install))
    return Plan(pins, reasons, tuple(remarks.values()), replaces)


def _plan_node(
    direct: list[str],
    shelf: Shelf,
    system: NodeSystem,
    there: Mapping[str, PackageThere],
    into: tuple[dict[str, PackagePin], dict[str, str], dict[str, str]],
) -> None:
    install, reasons, remarks = into
    waiting: list[tuple[str, Requirement | None, str]] = [(name, None, "your code imports it") for name in direct]
    seen: set[str] = set()
    while waiting:
        name, need, why = waiting.pop(0)
        one = shelf.get(name)
        if one is None or one.name in seen:
            continue
        seen.add(one.name)
        node = there.get(one.name)
        if node is None or node.verdict == "fits" or _satisfies(node, need):
            continue
        if node.verdict == "kept":
            remarks[one.name] = f"{one.name} {node.version} of the node's image is kept; here it is {one.version}"
            continue
        if one.is_editable:
            remarks[one.name] = (
                f"{one.name} is installed here in editable mode, so no index has it: name its folder after --sync"
            )
            continue
        state = f"; the node has {node.version}" if node.version else ""
        install[one.name] = PackagePin(name=one.name, version=one.version, size=one.size)
        reasons.setdefault(one.name, why + state)
        waiting += [(n.name, n, f"{one.name} needs it") for n in one.needs if _applies(n, system)]


def _satisfies(node: PackageThere, need: Requirement | None) -> bool:
    """Whether what the node has is enough for the package that needs it."""
    return bool(need is not None and node.version and need.specifier.contains(node.version, prereleases=True))


def _applies(need: Requirement, system: NodeSystem | None) -> bool:
    """Whether a requirement counts on this kind of machine, without extras."""
    if need.marker is None:
        return True
    environment = {"extra": ""}
    if system is not None:
        is_linux = system.system == "Linux"
        environment |= {"platform_system": system.system, "platform_machine": system.machine}
        environment |= {"sys_platform": "linux" if is_linux else sys.platform, "os_name": "posix"}
    return need.marker.evaluate(environment)
