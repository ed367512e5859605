"""What the cluster process (orders) and the agent on a node (reports) say to each other.

Typed, bounded, and versioned by `PROTOCOL`. Both decode with these types and refuse everything else. Bytes from the
node stay bytes here: nothing is unpickled, and Jupyter content is JSON that the cleaner looks at before display.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    View = bytes | memoryview
else:
    View = memoryview

PROTOCOL = 1

MAX_FRAME_BYTES = 8 * 1024 * 1024
MAX_CHUNK_BYTES = 1024 * 1024
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
MAX_NAME_CHARS = 200
MAX_DEPTH = 64


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", omit_defaults=True, forbid_unknown_fields=True):
    """Base of all messages inside the numbered channel."""


# ── orders: cluster process → agent ──────────────────────────────────────────────────────────────────────────────────


class SetDeadline(Message, frozen=True, kw_only=True, tag="deadline"):
    """A new time (ms UTC) at which the node stops itself, and how long it waits in silence when idle."""

    deadline_ms: int
    grace_s: int


class PutBlob(Message, frozen=True, kw_only=True, tag="put_blob"):
    """A piece of an input, by content: pieces come in order, `last` closes it, the agent checks the hash."""

    sha256: str
    offset: int
    data: bytes
    last: bool


class Input(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A variable to set before the cell: the blob `sha256`, decoded by `codec` (cloudpickle is allowed on the node)."""

    name: str
    codec: str
    sha256: str


class Execute(Message, frozen=True, kw_only=True, tag="execute"):
    """Run a cell in a session (started if need be). The same `run_id` twice runs once."""

    run_id: str
    session: str
    code: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[str, ...] = ()
    timeout_s: float | None = None


class Interrupt(Message, frozen=True, kw_only=True, tag="interrupt"):
    """Interrupt a run, as Ctrl-C would; a run still queued is dropped. `save`: its declared outputs are wanted then."""

    run_id: str
    save: bool = False


class RestartSession(Message, frozen=True, kw_only=True, tag="restart"):
    """Kill a session's kernel and start a new one; its runs end as errors."""

    session: str


class CloseSession(Message, frozen=True, kw_only=True, tag="close_session"):
    """End a session's kernel."""

    session: str


class Tail(Message, frozen=True, kw_only=True, tag="tail"):
    """Send a run's messages with numbers greater than `after`, and go on sending as they come."""

    run_id: str
    after: int


class Saved(Message, frozen=True, kw_only=True, tag="saved"):
    """Messages up to `upto` are on the user's disk; with `ended`, the node may forget the run."""

    run_id: str
    upto: int
    ended: bool = False


class GetOutput(Message, frozen=True, kw_only=True, tag="get_output"):
    """Send an output's bytes from `offset` on."""

    run_id: str
    name: str
    offset: int


class ListRuns(Message, frozen=True, kw_only=True, tag="list_runs"):
    """Report every run that the agent knows (after a restart of the cluster process)."""


class Shutdown(Message, frozen=True, kw_only=True, tag="shutdown"):
    """End all sessions, Dask processes and the agent itself. `keep_files` leaves the logs."""

    keep_files: bool = False


class StartDask(Message, frozen=True, kw_only=True, tag="start_dask"):
    """Start a Dask scheduler (`role` scheduler) or workers (`role` worker) with these arguments and TLS files.

    `gpu` is the one GPU that it may see, counted among those that the lease may see; None: all of them.
    """

    role: str
    name: str
    options: dict[str, str] = {}
    files: dict[str, bytes] = {}
    environment: dict[str, str] = {}
    gpu: int | None = None


class StopDask(Message, frozen=True, kw_only=True, tag="stop_dask"):
    """Stop what `StartDask` started under this name."""

    name: str


class RetireDask(Message, frozen=True, kw_only=True, tag="retire_dask"):
    """To the node with the scheduler: move what these workers hold to others, then end them. Names as in StartDask."""

    workers: tuple[str, ...]


class OpenStream(Message, frozen=True, kw_only=True, tag="open"):
    """Open a byte stream to a TCP port on the node's loopback (or offer one that was accepted there)."""

    stream: int
    port: int
    listen: bool = False


class StreamData(Message, frozen=True, kw_only=True, tag="data"):
    """Bytes of a stream; `end` closes this direction. What was received is a view of the message that it came in."""

    stream: int
    data: View
    end: bool = False


class StreamCredit(Message, frozen=True, kw_only=True, tag="credit"):
    """The receiver can take so many bytes more."""

    stream: int
    bytes: int


class CloseStream(Message, frozen=True, kw_only=True, tag="close"):
    """The stream is over in both directions."""

    stream: int
    reason: str = ""


Order = (
    SetDeadline
    | PutBlob
    | Execute
    | Interrupt
    | RestartSession
    | CloseSession
    | Tail
    | Saved
    | GetOutput
    | ListRuns
    | Shutdown
    | StartDask
    | StopDask
    | RetireDask
    | OpenStream
    | StreamData
    | StreamCredit
    | CloseStream
)


# ── reports: agent → cluster process ─────────────────────────────────────────────────────────────────────────────────


class AgentReady(Message, frozen=True, kw_only=True, tag="ready"):
    """First report of a new attachment: who the agent is and what it has.

    Agents of the same `network` share one loopback, so that a port means the same to them without any help. `code` is
    the list of the user's own modules that it has (`syncing.tree_of`); an agent that cannot take any says nothing.
    """

    python: str
    versions: dict[str, str]
    pid: int
    started_ms: int
    sessions: tuple[str, ...] = ()
    network: str = ""
    code: str = ""


class BlobStored(Message, frozen=True, kw_only=True, tag="blob_stored"):
    """A blob is whole and its hash is right; or `error`."""

    sha256: str
    error: str = ""


class RunStateReport(Message, frozen=True, kw_only=True, tag="run_state"):
    """Where a run is. `status` is one of queued, running, ok, error, interrupted, timed_out, lost.

    `messages` is the number of its last message so far; `outputs` tells what can be fetched once it has ended.
    """

    run_id: str
    session: str
    status: str
    messages: int
    started_ms: int | None = None
    ended_ms: int | None = None
    reason: str = ""
    error_name: str = ""
    error_value: str = ""
    traceback: tuple[str, ...] = ()
    outputs: tuple[OutputReport, ...] = ()


class OutputReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One output variable, encoded by `codec`; or why there is none."""

    name: str
    codec: str = ""
    size: int = 0
    sha256: str = ""
    error: str = ""


class RunOutput(Message, frozen=True, kw_only=True, tag="output"):
    """One numbered output message of a run. `content` and `metadata` are JSON text, at most MAX_MESSAGE_BYTES."""

    run_id: str
    n: int
    at_ms: int
    msg_type: str
    content: bytes
    metadata: bytes = b"{}"


class OutputChunk(Message, frozen=True, kw_only=True, tag="output_chunk"):
    """A piece of an output variable's bytes."""

    run_id: str
    name: str
    offset: int
    data: bytes
    last: bool


class RunList(Message, frozen=True, kw_only=True, tag="run_list"):
    """The answer to ListRuns."""

    runs: tuple[RunStateReport, ...]


class SessionReport(Message, frozen=True, kw_only=True, tag="session"):
    """A session's kernel: starting, idle, busy, dead (with the reason), closed."""

    session: str
    state: str
    reason: str = ""


class GpuReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one GPU does."""

    index: int
    name: str
    use_percent: float
    memory_used_gib: float
    memory_total_gib: float


class UseReport(Message, frozen=True, kw_only=True, tag="use"):
    """What the node does, every few seconds. Bytes: through its network, without loopback, since the agent began."""

    at_ms: int
    cpu_percent: float
    memory_used_gib: float
    memory_total_gib: float
    disk_free_gib: float
    gpus: tuple[GpuReport, ...] = ()
    received_bytes: int = 0
    sent_bytes: int = 0


class DaskReport(Message, frozen=True, kw_only=True, tag="dask"):
    """A Dask process: its address, or why it ended."""

    name: str
    state: str
    address: str = ""
    reason: str = ""


class DaskWorkerStatus(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the scheduler knows of one worker."""

    name: str
    processing: int
    in_memory: int
    memory_bytes: int
    occupancy_s: float
    nthreads: int = 0
    memory_limit: int = 0


class DaskProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many tasks of one kind are where; `done` are those whose result is not kept any more."""

    name: str
    waiting: int = 0
    processing: int = 0
    in_memory: int = 0
    done: int = 0
    erred: int = 0


class DaskGraph(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The last large graph that was submitted, and what is known of it by now.

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


class DaskStatus(Message, frozen=True, kw_only=True, tag="dask_status"):
    """What the scheduler does, every half second while that changes."""

    at_ms: int
    waiting: int
    queued: int
    unrunnable: int
    processing: int
    in_memory: int
    erred: int
    occupancy_s: float
    workers: tuple[DaskWorkerStatus, ...] = ()
    retired: tuple[str, ...] = ()
    poisoned: tuple[str, ...] = ()
    progress: tuple[DaskProgress, ...] = ()
    graph: DaskGraph | None = None


class Leaving(Message, frozen=True, kw_only=True, tag="leaving"):
    """The node is being shut down: the agent was told to end by somebody else than the user's side."""

    left_ms: int
    reason: str


class Trouble(Message, frozen=True, kw_only=True, tag="trouble"):
    """An order could not be carried out."""

    about: str
    reason: str


Report = (
    AgentReady
    | BlobStored
    | RunStateReport
    | RunOutput
    | OutputChunk
    | RunList
    | SessionReport
    | UseReport
    | DaskReport
    | DaskStatus
    | Leaving
    | Trouble
    | OpenStream
    | StreamData
    | StreamCredit
    | CloseStream
)
