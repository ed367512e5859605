"""The user's own modules and packages on the nodes of a cluster: what doors ask of the cluster process."""

from __future__ import annotations

from typing import Literal

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import CodeFile, Record


class CodeWish(Request, frozen=True, kw_only=True):
    """PUT /v1/code: have exactly these files on every node, before anything else runs there; answered when so it is.

    `archive` is a blob, a zip that holds those that the cluster process does not have yet, each under its SHA-256.
    `origins`: where each module lies on this computer, which no node is told.
    """

    files: tuple[CodeFile, ...]
    archive: str = ""
    origins: dict[str, tuple[str, ...]] = {}


class CodeNode(Record, frozen=True, kw_only=True):
    """One node: whether it has them. `note`: what the user should know besides."""

    lease_id: str
    state: Literal["there", "waiting", "failed"]
    error: str = ""
    note: str = ""


class PackagePin(Request, frozen=True, kw_only=True):
    """A distribution at the user's version. `size`: bytes of its files as they are installed here."""

    name: str
    version: str
    size: int = 0


class CodeView(Record, frozen=True, kw_only=True):
    """GET /v1/code: the files that nodes have, or are to have, and the packages that were brought for them."""

    files: tuple[CodeFile, ...] = ()
    origins: dict[str, tuple[str, ...]] = {}
    packages: tuple[PackagePin, ...] = ()
    nodes: tuple[CodeNode, ...] = ()


class PackageLook(Request, frozen=True, kw_only=True):
    """POST /v1/packages/look: what the nodes have of these."""

    packages: tuple[PackagePin, ...]


class PackageThere(Record, frozen=True, kw_only=True):
    """One distribution on one node. `version` is empty where it is missing.

    `differs`: another first or second number than here. `kept`: so it does, and it is too heavy, or too deep in the
    image, to be replaced.
    """

    lease_id: str
    name: str
    version: str
    verdict: Literal["missing", "fits", "differs", "kept"]


class NodeSystem(Record, frozen=True, kw_only=True):
    """What a node is, for requirements that depend on it."""

    lease_id: str
    system: str
    machine: str


class PackagesFound(Record, frozen=True, kw_only=True):
    """The answer to PackageLook."""

    there: tuple[PackageThere, ...]
    systems: tuple[NodeSystem, ...] = ()


class PackageWish(Request, frozen=True, kw_only=True):
    """PUT /v1/packages: have these on every node that lacks them, now and on nodes to come; answered when so it is.

    `where`: folders of this computer in which they are installed, for nodes that no index serves.
    """

    packages: tuple[PackagePin, ...]
    where: tuple[str, ...] = ()
