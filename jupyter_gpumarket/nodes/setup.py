"""Make a rented machine a node: watchdog first, then Python and packages, then the agent.

Called by the cluster process after each first connection. Every step looks before it acts, so a second run is quick and
a half-finished one is completed. What the node answers only ever chooses among our own next steps.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jupyter_gpumarket.api import SetupStep
from jupyter_gpumarket.errors import CommandFailed, GpuMarketError, VersionMismatch
from jupyter_gpumarket.nodes import versions
from jupyter_gpumarket.nodes.bundle import bundle, node_program
from jupyter_gpumarket.nodes.link import NodeLink
from jupyter_gpumarket.nodes.orders import AnAnswer, Answer, order
from jupyter_gpumarket.nodes.packages import NodePlatform, fetch
from jupyter_gpumarket.nodes.plan import Installed, SetupPlan, node_path
from jupyter_gpumarket.nodes.versions import Versions

WATCHDOG_TIMEOUT_S = 60
LOOK_TIMEOUT_S = 120
AGENT_START_S = 30
INSTALL_TIMEOUT_S = 600
# An interpreter that has one of these is the image's own, and the one that cells want.
GPU_LIBRARIES = ("torch", "jax", "tensorflow", "cupy-cuda12x", "cupy-cuda13x")

OnStep = Callable[[SetupStep], None]


class WatchdogAnswer(Answer, frozen=True, kw_only=True):
    """The watchdog runs."""

    folder: str = ""
    python: str = ""
    python_version: str = ""
    started: bool = False


class PythonFacts(Answer, frozen=True, kw_only=True):
    """One interpreter on the node."""

    path: str
    version: str
    implementation: str = ""
    packages: dict[str, str] = {}
    in_venv: bool = False
    bits: int = 64


class LookAnswer(Answer, frozen=True, kw_only=True):
    """What the node has."""

    machine: str = ""
    system: str = ""
    libc: str = ""
    free_bytes: int = 0
    uv: str = ""
    pythons: tuple[PythonFacts, ...] = ()
    app: str = ""
    agent_running: bool = False
    agent_python: str = ""


class InstallAnswer(Answer, frozen=True, kw_only=True):
    """Where the environment's interpreter is."""

    python: str = ""


class AgentAnswer(Answer, frozen=True, kw_only=True):
    """The agent runs."""

    started: bool = False


async def prepare(link: NodeLink, plan: SetupPlan, on_step: OnStep) -> Installed:
    """Bring the watchdog, fitting packages and the agent to the node; quick when they are there.

    Raises:
        VersionMismatch: Python or packages do not fit and could not be brought; names difference and fix.
        CommandFailed: a step failed on the node, with its last lines.
        NodeError: the node has no Python, or answers nonsense.
        Unreachable: the link was lost; run it again.
    """
    return await _Setup(link, plan, on_step).run()


class _Setup:
    """One run of the steps."""

    def __init__(self, link: NodeLink, plan: SetupPlan, on_step: OnStep) -> None:
        self._link = link
        self._plan = plan
        self._on_step = on_step
        self._wanted = plan.wanted or versions.ours()
        self._steps_ms: dict[str, int] = {}
        self._any_python = ""
        self._folder = ""

    async def run(self) -> Installed:
        await self._watchdog()
        there = await self._look()
        chosen = await self._packages(there)
        await self._app(there)
        await self._agent(chosen)
        app = shlex.quote(f"PYTHONPATH={self._folder}/app.zip")
        arguments = shlex.join([chosen.path, "-m", "jupyter_gpumarket.agent", "attach", "--folder", self._folder])
        return Installed(
            python=chosen.path,
            python_version=chosen.version,
            folder=self._folder,
            versions=chosen.packages,
            steps_ms=self._steps_ms,
            attach_command=f"exec env {app} {arguments}",
        )

    async def _watchdog(self) -> None:
        with self._step("watchdog", "a timer that stops the node at its deadline") as step:
            program = base64.b64encode(node_program("agent/watchdog.py")).decode("ascii")
            what = {**self._order("watchdog"), "program": program, "settings": self._plan.watchdog_settings()}
            there = await order(self._link, "steps", what, WatchdogAnswer, timeout_s=WATCHDOG_TIMEOUT_S)
            self._folder, self._any_python = node_path(there.folder), node_path(there.python)
            step.end(done=there.started, detail="started" if there.started else "runs already, deadline renewed")

    async def _look(self) -> LookAnswer:
        with self._step("python", f"looking for Python {self._wanted.minor}") as step:
            # Starting every interpreter of an image takes its time; the one we were pointed to is mostly enough.
            there = await self._looked(wide=False)
            if best(self._wanted, there) is None:
                there = await self._looked(wide=True)
            step.end(detail=f"{len(there.pythons)} found, {there.machine}, {there.free_bytes / 2**30:.1f} GiB free")
            return there

    async def _looked(self, *, wide: bool) -> LookAnswer:
        names = [*versions.DEMANDS, *GPU_LIBRARIES]
        what = {**self._order("look"), "minor": self._wanted.minor, "names": names, "wide": wide}
        return await self._send(what, LookAnswer, LOOK_TIMEOUT_S)

    async def _packages(self, there: LookAnswer) -> PythonFacts:
        with self._step("packages", "comparing versions with yours") as step:
            fitting = best(self._wanted, there)
            if fitting is not None:
                node_path(fitting.path)
                step.end(done=False, detail=f"Python {fitting.version} with fitting packages is there")
                return fitting
            return await self._bring(there, step)

    async def _bring(self, there: LookAnswer, step: _Step) -> PythonFacts:
        """Make an environment beside the image's own Python and install what differs, at the user's versions."""
        base = base_for(self._wanted, there)
        if base is None and not there.uv:
            raise VersionMismatch(mismatch(self._wanted, there, self._link.name))
        tools = {"base": node_path(base.path) if base else "", "uv": there.uv, "limit_s": INSTALL_TIMEOUT_S}
        step.progress("making an environment" if base else f"uv brings Python {self._wanted.minor}")
        try:
            what = {**self._order("venv"), **tools, "minor": self._wanted.minor}
            made = await self._send(what, InstallAnswer, 2 * INSTALL_TIMEOUT_S)
        except CommandFailed as error:
            raise VersionMismatch(f"{mismatch(self._wanted, there, self._link.name)}\n{error}") from None
        pins = pins_for(self._wanted, base)
        step.progress(f"installing {len(pins)} packages at your versions")
        try:
            what = {**self._order("install"), **tools, "pins": [f"{name}=={pin}" for name, pin in pins.items()]}
            await self._send(what, InstallAnswer, 2 * INSTALL_TIMEOUT_S + 30)
        except CommandFailed as error:
            step.progress(f"the node cannot get them itself, so they go over the link ({str(error)[:200]})")
            await self._push_packages(there, step)
        return await self._brought(node_path(made.python), step)

    async def _push_packages(self, there: LookAnswer, step: _Step) -> None:
        target = NodePlatform(
            system=there.system, machine=there.machine, libc=there.libc, python_minor=self._wanted.minor
        )
        archive = await fetch(self._wanted.packages, target)
        step.progress(f"sending {len(archive) / 2**20:.0f} MiB of packages")
        await self._link.put(archive, f"{self._folder}/packages.zip")
        what = {**self._order("unpack"), "sha256": hashlib.sha256(archive).hexdigest()}
        await self._send(what, InstallAnswer, INSTALL_TIMEOUT_S)

    async def _brought(self, python: str, step: _Step) -> PythonFacts:
        """Look again: what was installed has to fit now."""
        there = await self._looked(wide=False)
        ours = LookAnswer(pythons=tuple(facts for facts in there.pythons if facts.path == python))
        fitting = best(self._wanted, ours)
        if fitting is None:
            raise VersionMismatch(mismatch(self._wanted, ours, self._link.name))
        step.end(detail=f"Python {fitting.version} with your versions in {python}")
        return fitting

    async def _app(self, there: LookAnswer) -> None:
        with self._step("agent files", "our own part of the node") as step:
            ours = bundle()
            if there.app == ours.sha256:
                step.end(done=False, detail="already there")
            elif there.app and there.agent_running:
                # A running agent loads modules from the archive as it goes: replaced under it, it would mix versions.
                step.end(done=False, detail="another version runs and is left alone")
            else:
                await self._link.put(ours.content, f"{self._folder}/app.zip")
                step.end(detail=f"{len(ours.content) // 1024} KiB sent")

    async def _agent(self, chosen: PythonFacts) -> None:
        with self._step("agent", "starting the agent") as step:
            settings = self._plan.agent_settings(chosen.path)
            what = {**self._order("agent"), "settings": settings, "limit_s": AGENT_START_S}
            there = await self._send(what, AgentAnswer, AGENT_START_S + 20)
            step.end(done=there.started, detail="started" if there.started else "runs already")

    def _order(self, step: str) -> dict[str, object]:
        return {"step": step, "lease_id": self._plan.lease_id}

    async def _send(self, what: dict[str, object], kind: type[AnAnswer], timeout_s: float) -> AnAnswer:
        return await order(self._link, "steps", what, kind, timeout_s=timeout_s, python=self._any_python)

    @contextmanager
    def _step(self, name: str, detail: str) -> Iterator[_Step]:
        step = _Step(name, self._on_step, self._steps_ms)
        self._on_step(SetupStep(name=name, state="running", detail=detail))
        try:
            yield step
        except GpuMarketError as error:
            step.fail(str(error))
            raise


class _Step:
    """Tells how one step went."""

    def __init__(self, name: str, on_step: OnStep, steps_ms: dict[str, int]) -> None:
        self._name = name
        self._on_step = on_step
        self._steps_ms = steps_ms
        self._started_s = time.monotonic()

    def progress(self, detail: str) -> None:
        self._on_step(SetupStep(name=self._name, state="running", detail=detail, took_ms=self._took_ms()))

    def end(self, *, detail: str, done: bool = True) -> None:
        took_ms = self._steps_ms[self._name] = self._took_ms()
        self._on_step(SetupStep(name=self._name, state="done" if done else "skipped", detail=detail, took_ms=took_ms))

    def fail(self, detail: str) -> None:
        self._on_step(SetupStep(name=self._name, state="failed", detail=detail, took_ms=self._took_ms()))

    def _took_ms(self) -> int:
        return round((time.monotonic() - self._started_s) * 1000)


def best(wanted: Versions, there: LookAnswer) -> PythonFacts | None:
    """The interpreter to work with: the running agent's if it fits, else the first that fits."""
    fitting = [
        facts
        for facts in there.pythons
        if facts.implementation == "cpython"
        and not versions.differences(wanted, Versions(python=facts.version, packages=facts.packages))
    ]
    return next((f for f in fitting if there.agent_running and f.path == there.agent_python), None) or next(
        iter(fitting), None
    )


def base_for(wanted: Versions, there: LookAnswer) -> PythonFacts | None:
    """The interpreter to build on: of the wanted minor version, with a GPU library if one has it."""
    usable = [
        facts
        for facts in there.pythons
        if facts.implementation == "cpython"
        and facts.bits == 64
        and Versions(python=facts.version, packages={}).minor == wanted.minor
    ]
    return next((f for f in usable if any(name in f.packages for name in GPU_LIBRARIES)), None) or next(
        iter(usable), None
    )


def pins_for(wanted: Versions, base: PythonFacts | None) -> dict[str, str]:
    """What has to be installed on top of what the base has already."""
    there = Versions(python=wanted.python, packages=base.packages if base else {})
    pins = {found.name: found.ours for found in versions.differences(wanted, there)}
    missing = wanted.packages.keys() - there.packages.keys()
    return pins | {name: wanted.packages[name] for name in sorted(missing)}


def mismatch(wanted: Versions, there: LookAnswer, name: str) -> str:
    """What differs on the interpreter that comes nearest, and how to mend it."""

    def found(facts: PythonFacts) -> list[versions.Difference]:
        return versions.differences(wanted, Versions(python=facts.version, packages=facts.packages))

    if not there.pythons:
        return f"no usable Python on {name}; Python {wanted.minor} is needed, as on your side. Use an image that has it"
    nearest = min(there.pythons, key=lambda facts: len(found(facts)))
    differences = found(nearest)
    told = "; ".join(str(difference) for difference in differences)
    return f"{nearest.path} on {name} does not fit your side: {told}. {_way_out(wanted, nearest, differences)}"


def _way_out(wanted: Versions, nearest: PythonFacts, differences: list[versions.Difference]) -> str:
    """One fix on each side: the user can mend theirs at once, an image they may have to choose anew."""
    if Versions(python=nearest.version, packages={}).minor != wanted.minor:
        return f"Use an image with Python {wanted.minor}, or a notebook kernel with the node's Python"
    there = " ".join(f"{found.name}=={found.ours}" for found in differences)
    here = " ".join(f"{found.name}=={found.theirs}" for found in differences if found.theirs)
    use_theirs = f", or use the node's versions here: pip install {here}" if here else ""
    return f"Use an image with these versions (pip install {there}){use_theirs}"
