"""Dask on the nodes of a cluster: what doors ask of the cluster process, and what it answers."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from jupyter_gpumarket.api.base import Request
from jupyter_gpumarket.models import Record

Count = Annotated[int, Meta(ge=0, le=100_000)]


class DaskWish(Request, frozen=True, kw_only=True):
    """PUT /v1/dask: have a scheduler on the most reliable node and workers on every node, now and for nodes to come.

    `nthreads` of 0: as many as the node has cores, shared by its workers (one on a GPU worker). `memory_limit` and
    `environment` are as `dask worker` takes them. `allowed_failures`: how many workers may die with a task before the
    task is called poisoned and ends as an error. Tasks are handed out far ahead here, and Dask counts a death for all
    that were assigned, so it is more than Dask's own 3.
    """

    nthreads: Count = 0
    memory_limit: str = "auto"
    nanny: bool = True
    dashboard: bool = False
    allowed_failures: Count = 10
    environment: dict[str, str] = {}


class DaskRetire(Request, frozen=True, kw_only=True):
    """POST /v1/dask/retire: move what is in memory off a node's workers and end them, before the node goes."""

    lease_id: str
    reason: str = ""


class DaskAccess(Record, frozen=True, kw_only=True):
    """POST /v1/dask/access: a way to the scheduler for a client on the user's side, with a certificate of its own.

    It listens on this machine's loopback while the cluster process runs. Whoever speaks to a scheduler may be made to
    run code by it, so doors ask for this only where the nodes are the user's own. `ca`, `cert` and `key` are paths.
    """

    address: str
    ca: str
    cert: str
    key: str
    dashboard: str = ""


class DaskWorkerView(Record, frozen=True, kw_only=True):
    """One worker: where it is, and what it does. `processing` tasks are assigned to it, the running ones included."""

    name: str
    lease_id: str
    state: Literal["starting", "running", "ended", "retiring", "retired"]
    address: str = ""
    gpu: int | None = None
    processing: int = 0
    in_memory: int = 0
    memory_bytes: int = 0
    memory_limit: int = 0
    nthreads: int = 0
    occupancy_s: float = 0.0
    reason: str = ""


class DaskProgress(Record, frozen=True, kw_only=True):
    """How far tasks of one kind are. `done`: over, their results not kept. The name is a node's word: a text."""

    name: str
    waiting: int = 0
    processing: int = 0
    in_memory: int = 0
    done: int = 0
    erred: int = 0


class DaskGraph(Record, frozen=True, kw_only=True):
    """The last large graph that was submitted; `number` counts them.

    `known_tasks` of its `tasks` are of kinds that have run before, and take `known_s` on one thread. Results are to go
    from node to node about `moves` times; of `known_moves` the sizes are known, `moved_bytes` in all.
    """

    number: int
    at_ms: int
    tasks: int
    known_tasks: int = 0
    known_s: float = 0.0
    moves: int = 0
    known_moves: int = 0
    moved_bytes: int = 0


class DaskTasks(Record, frozen=True, kw_only=True):
    """The scheduler's tasks by state, as of `at_ms`. `occupancy_s`: the time that the assigned ones need, estimated.

    `poisoned` names tasks that ended as errors because too many workers had died with them. `progress`: the kinds of
    tasks with most to do, at most a dozen.
    """

    at_ms: int = 0
    waiting: int = 0
    queued: int = 0
    unrunnable: int = 0
    processing: int = 0
    in_memory: int = 0
    erred: int = 0
    occupancy_s: float = 0.0
    poisoned: tuple[str, ...] = ()
    progress: tuple[DaskProgress, ...] = ()
    graph: DaskGraph | None = None


class DaskWayView(Record, frozen=True, kw_only=True):
    """How one node reaches the workers (and the inputs) of another one, and why."""

    from_lease: str
    to_lease: str
    is_direct: bool
    reason: str = ""


class DaskLack(Record, frozen=True, kw_only=True):
    """A node on which a worker should run and does not, or is not heard, and why. It may hold a node's words."""

    lease_id: str
    reason: str


class DaskView(Record, frozen=True, kw_only=True):
    """GET /v1/dask. `head` is the lease on which the scheduler runs: cells sent there find `client`.

    `generation` counts schedulers: a greater one than before means that the former scheduler is lost, with its futures.
    `relayed` and `direct` count the ways between nodes to each other's workers, through the links and without them;
    `ways` says why (of very many nodes, of some). `staged_bytes`: of inputs that nodes got from each other. `lacks`:
    nodes with fewer running workers than they should have, or that are not heard.
    """

    state: Literal["off", "waiting", "starting", "running"]
    head: str = ""
    head_reason: str = ""
    generation: int = 0
    address: str = ""
    workers: tuple[DaskWorkerView, ...] = ()
    tasks: DaskTasks = DaskTasks()
    relayed: int = 0
    direct: int = 0
    relayed_bytes: int = 0
    staged_bytes: int = 0
    ways: tuple[DaskWayView, ...] = ()
    lacks: tuple[DaskLack, ...] = ()
    notices: tuple[str, ...] = ()
