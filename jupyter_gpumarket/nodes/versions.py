"""Which differences between the node's Python and packages and the user's matter. Pure."""

from __future__ import annotations

import platform
import re
from enum import StrEnum
from importlib import metadata
from typing import Literal

from jupyter_gpumarket.models import Record


class Rule(StrEnum):
    """How close a package on the node has to be to the user's."""

    SAME_MINOR = "the first two numbers must be equal"
    SAME_MAJOR = "the first number must be equal"
    AT_LEAST = "it must not be older than what we need"
    OPTIONAL = "it may be missing"


class Demand(Record, frozen=True, kw_only=True):
    """A package that the node needs. `minimum` applies to AT_LEAST."""

    rule: Rule
    why: str
    minimum: str = ""


# Dask's parts refuse or misunderstand each other across releases; what is pickled here is unpickled there; the rest
# only has to be new enough for the agent.
DEMANDS: dict[str, Demand] = {
    "cloudpickle": Demand(rule=Rule.SAME_MINOR, why="inputs are pickled on one side and unpickled on the other"),
    "dask": Demand(rule=Rule.SAME_MINOR, why="task graphs are built on one side and run on the other"),
    "distributed": Demand(rule=Rule.SAME_MINOR, why="scheduler, workers and clients speak one version's protocol"),
    "msgpack": Demand(rule=Rule.SAME_MINOR, why="it frames Dask's messages"),
    "numpy": Demand(rule=Rule.SAME_MAJOR, why="pickled arrays name modules that moved between major versions"),
    "ipykernel": Demand(rule=Rule.AT_LEAST, minimum="6.29", why="it runs the cells"),
    "jupyter_client": Demand(rule=Rule.AT_LEAST, minimum="8.6", why="the agent drives kernels with it"),
    "msgspec": Demand(rule=Rule.AT_LEAST, minimum="0.19", why="the agent speaks to us with it"),
    "psutil": Demand(rule=Rule.AT_LEAST, minimum="5.9", why="the agent watches processes with it"),
    "nvidia-ml-py": Demand(rule=Rule.OPTIONAL, why="it reports what the GPUs do"),
}


# Built for one driver and one kind of GPU, of some hundred megabytes and more: the image's own is kept.
HEAVY = frozenset(
    {"torch", "torchvision", "torchaudio", "triton", "tensorflow", "jax", "jaxlib", "cupy", "mxnet", "vllm"}
    | {"xformers", "flash-attn", "bitsandbytes", "deepspeed", "cudf", "cuml", "cugraph", "rmm", "dask-cuda"}
)
HEAVY_PREFIXES = ("nvidia-", "cupy-", "jax-cuda", "cudf-", "cuml-", "tensorrt")
HEAVY_BYTES = 300 * 1024**2

Verdict = Literal["missing", "fits", "differs", "kept"]


class Versions(Record, frozen=True, kw_only=True):
    """A Python and its packages."""

    python: str
    packages: dict[str, str]

    @property
    def minor(self) -> str:
        """`3.11` of `3.11.7`."""
        return ".".join(self.python.split(".")[:2])


class Difference(Record, frozen=True, kw_only=True):
    """One difference that matters, with the reason. `theirs` is empty where the package is missing."""

    name: str
    ours: str
    theirs: str
    why: str

    def __str__(self) -> str:
        there = f"{self.theirs} on the node" if self.theirs else "missing on the node"
        return f"{self.name} {there}, {self.ours} here ({self.why})"


def ours() -> Versions:
    """What this process has of what a node needs."""
    found = {}
    for name in DEMANDS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return Versions(python=platform.python_version(), packages=found)


def differences(wanted: Versions, there: Versions) -> list[Difference]:
    """What has to be changed on the node before anything can run; Python first. Packages not wanted are not asked."""
    found = []
    if wanted.minor != there.minor:
        why = "pickled functions hold byte code, which changes with each minor version"
        found.append(Difference(name="Python", ours=wanted.python, theirs=there.python, why=why))
    for name, version in sorted(wanted.packages.items()):
        demand = DEMANDS.get(name)
        theirs = there.packages.get(name, "")
        if demand is not None and not _fits(demand, version, theirs):
            found.append(Difference(name=name, ours=version, theirs=theirs, why=demand.why))
    return found


def verdict_on(name: str, ours: str, theirs: str, *, size: int = 0) -> Verdict:
    """What a package of the user's own code is on a node. `size`: bytes of it as it is installed here.

    Set-up has decided about what it compares itself; those and heavy ones are never replaced on a node that has them.
    """
    if not theirs:
        return "missing"
    if numbers(theirs)[:2] == numbers(ours)[:2]:
        return "fits"
    return "kept" if name in DEMANDS or is_heavy(name, size) else "differs"


def is_heavy(name: str, size: int = 0) -> bool:
    """Whether a package is not to be replaced by the way."""
    return name in HEAVY or name.startswith(HEAVY_PREFIXES) or size > HEAVY_BYTES


def _fits(demand: Demand, ours: str, theirs: str) -> bool:
    if demand.rule is Rule.OPTIONAL:
        return True
    if not theirs:
        return False
    if demand.rule is Rule.AT_LEAST:
        return numbers(theirs) >= numbers(demand.minimum)
    length = 2 if demand.rule is Rule.SAME_MINOR else 1
    return numbers(theirs)[:length] == numbers(ours)[:length]


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.1.0rc1+cu121` is (2, 1, 0). At least two, so that `2` equals `2.0`."""
    leading = re.match(r"\d{1,9}(?:\.\d{1,9})*", version)
    found = tuple(int(part) for part in leading.group().split(".")) if leading else ()
    return found + (0,) * (2 - len(found))
