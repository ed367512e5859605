"""One map that runs, or has run: the table decides, this acts. Whatever doors see is on the disk first."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from jupyter_gpumarket.api import ItemState, ItemView, MapNews, MapRequest, MapState, MapView, RunRequest
from jupyter_gpumarket.api.maps import MAP_SESSION, map_run_id
from jupyter_gpumarket.clock import Clock
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.cluster.maps import checking, outcomes
from jupyter_gpumarket.cluster.maps.records import MapRecord
from jupyter_gpumarket.cluster.maps.seat import Seat
from jupyter_gpumarket.cluster.maps.table import Place, Report, Table, share_out
from jupyter_gpumarket.cluster.node import Node
from jupyter_gpumarket.cluster.runs import RunStore
from jupyter_gpumarket.codecs import DEFAULT_LIMITS
from jupyter_gpumarket.config import write_private
from jupyter_gpumarket.errors import CodecError
from jupyter_gpumarket.mapfiles import OutcomeLog, PackReader
from jupyter_gpumarket.models import RunStatus
from jupyter_gpumarket.wire import mapping as mm

logger = logging.getLogger(__name__)

TICK_S = 0.25
GATHER_S = 0.005
SAVE_EVERY_S = 0.2
# A node that is silent for so long is not waited for by nodes that have nothing to do.
PATIENCE_S = 5.0
# So long a new process waits for what nodes of before have to tell: sharing out earlier would run things twice.
RECALL_S = 20.0
CHECKERS = 2
DISK_RETRY_S = 1.0
STATUSES = frozenset({"ok", "error", "timed_out", "died"})
PAGE_ITEMS = 2000
PAGE_BYTES = 4 * 1024 * 1024


class Site(Protocol):
    """What a map needs of its cluster."""

    runs: RunStore
    blobs: BlobStore
    clock: Clock

    def attached(self) -> Mapping[str, Node]:
        """Every attached node by its lease."""


class LiveMap:
    """One map. Made from what is on disk; `start` it when it is to run."""

    def __init__(self, folder: Path, request: MapRequest, record: MapRecord, site: Site) -> None:
        """Read what is there.

        Raises:
            BadRequest: the items are not what was announced.
        """
        self.request = request
        self.record = record
        self._folder = folder
        self._site = site
        self._items = PackReader(site.blobs.path(request.items_sha256))
        self._table = Table(
            request.count,
            retries=request.retries,
            deaths=request.deaths,
            checked=outcomes.sample(record.seed, request.count, request.verify_ppm),
        )
        self._log = OutcomeLog(folder)
        for line in self._log.recover():
            self._table.restore(outcomes.report(line))
        self._seats: dict[str, Seat] = {}
        self._seat_numbers = 0
        self._trouble_here = ""
        self._checks: asyncio.Queue[tuple[Seat, mm.ItemOutcome]] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._news = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def map_id(self) -> str:
        return self.request.map_id

    @property
    def is_running(self) -> bool:
        """Whether it gives items to nodes."""
        return self.record.state is MapState.RUNNING

    # ── what doors ask ───────────────────────────────────────────────────────────────────────────────────────────────

    def view(self) -> MapView:
        """The map as doors see it."""
        table, request, record = self._table, self.request, self.record
        return MapView(
            map_id=self.map_id,
            state=record.state,
            count=request.count,
            n=self._log.count,
            ok=table.counts[ItemState.OK],
            failed=table.counts[ItemState.ERROR],
            poisoned=table.counts[ItemState.POISONED],
            running=table.running,
            waiting=max(0, request.count - table.ended - table.running),
            retried=table.retried,
            checks=len(table.checked),
            checked=table.checks_ended,
            created_ms=record.created_ms,
            began_ms=record.began_ms,
            ended_ms=record.ended_ms,
            reason=record.reason or self._trouble(),
            seats=tuple(seat.view(table.begun(seat.lease_id)) for seat in self._seats.values()),
            label=request.label,
            code_sha256=hashlib.sha256(request.code.encode("utf-8", "replace")).hexdigest(),
            item_name=request.item_name,
            owner=request.owner,
            cell_id=request.cell_id,
            round=record.round,
        )

    def news(self, after: int) -> MapNews:
        """Outcomes after a number."""
        return MapNews(items=self._log.read(after, PAGE_ITEMS, PAGE_BYTES), map=self.view())

    async def wait_news(self, after: int, timeout_s: float) -> None:
        """Return when an item has ended since, or the map has, or after the time."""
        until = asyncio.get_running_loop().time() + timeout_s
        while self._log.count <= after and self.is_running:
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), left)

    def start(self) -> None:
        """Give items to nodes, until each has ended or the map is stopped."""
        if self._tasks:
            return
        parts = [self._work(), self._save(), *(self._check() for _ in range(CHECKERS))]
        self._tasks = [asyncio.create_task(part) for part in parts]

    async def stop(self, reason: str) -> None:
        """End the workers and keep what is there.

        Raises:
            OSError: the disk is full or failing; asked again, it does the rest.
        """
        if self.is_running:
            self._change(state=MapState.STOPPED, reason=reason[:500], ended_ms=self._site.clock.now_ms())
        if self._tasks:
            await self._rest()

    def resume(self) -> None:
        """Go on with a stopped map, in a new round."""
        if self.record.state is not MapState.STOPPED:
            return
        now_ms = self._site.clock.now_ms()
        self._seats.clear()
        self._change(state=MapState.RUNNING, reason="", ended_ms=None, began_ms=now_ms, round=self.record.round + 1)
        self.start()

    async def close(self) -> None:
        """This process ends; the map goes on with the next one."""
        for seat in self._seats.values():
            seat.pause()
        await self._end_tasks()
        self._log.close()

    # ── what nodes say ───────────────────────────────────────────────────────────────────────────────────────────────

    def on_contact(self, lease_id: str) -> None:
        """A conversation with the node's agent begins."""
        seat = self._seats.get(lease_id)
        if seat is not None and self.is_running:
            seat.open()

    def on_report(self, lease_id: str, report: mm.MapReport) -> None:
        """Take what a node says.

        Raises:
            OSError: the disk takes nothing; nothing has changed.
        """
        seat = self._seats.get(lease_id)
        if seat is None or not self.is_running:
            return
        _REPORTS[type(report)](self, seat, report)
        self._wake.set()

    def on_gone(self, lease_id: str) -> None:
        """The node was let go."""
        seat = self._seats.get(lease_id)
        if seat is not None and self.is_running:
            seat.leave(RunStatus.LOST, "the node was given back, or was lost, before the map had ended")
            self._table.lose_node(lease_id)
            self._wake.set()

    def _on_ready(self, seat: Seat, report: mm.MapReady) -> None:
        may_claim = seat.state == "starting" and seat.run.state.started_ms is not None
        seat.ready(report)
        held = [(one.index, one.attempt, one.begun) for one in report.held]
        self._table.agree(seat.lease_id, held, may_claim=may_claim)

    def _on_begun(self, seat: Seat, report: mm.ItemBegun) -> None:
        self._table.begin(seat.lease_id, report.items)

    def _on_back(self, seat: Seat, report: mm.GivenBack) -> None:
        seat.is_asked = False
        self._table.give_back(seat.lease_id, report.items)

    def _on_chunk(self, seat: Seat, chunk: mm.ResultChunk) -> None:
        if self._table.is_held(chunk.index, seat.lease_id):
            seat.grow(chunk, DEFAULT_LIMITS.max_bytes)

    def _on_outcome(self, seat: Seat, outcome: mm.ItemOutcome) -> None:
        key = (outcome.index, outcome.attempt)
        report = Report(index=key[0], attempt=key[1], lease_id=seat.lease_id, status=outcome.status)
        if outcome.status not in STATUSES or not self._table.is_news(report):
            seat.grown(key)
            seat.part(key).unlink(missing_ok=True)
            self._table.drop(report)
            seat.unsaved.append(key)
        elif outcome.status != "ok" or not self.request.gives_result:
            self._record(seat, outcome)
        elif checking.is_quick(outcome) or not checking.is_welcome(outcome):
            self._record(seat, checking.checked_here(outcome))
        elif outcome.data or seat.grown(key) == outcome.size:
            self._checks.put_nowait((seat, outcome))

    # ── outcomes ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _check(self) -> None:
        """Results that are checked in a process of their own."""
        while True:
            seat, outcome = await self._checks.get()
            try:
                await self._take(seat, outcome)
            except Exception as error:  # noqa: BLE001 - told and logged
                self._held_up(error)
                await asyncio.sleep(DISK_RETRY_S)
                self._checks.put_nowait((seat, outcome))
            self._wake.set()

    async def _take(self, seat: Seat, outcome: mm.ItemOutcome) -> None:
        part = seat.part((outcome.index, outcome.attempt))
        try:
            await asyncio.to_thread(checking.check_file, outcome, part)
        except CodecError as error:
            self._record(seat, checking.refused(outcome, error))
        else:
            self._record(seat, outcome, None if outcome.data else part)
        part.unlink(missing_ok=True)

    def _held_up(self, error: Exception) -> None:
        """By the disk, or by an error of ours, which must not be the end of it either: it is tried again."""
        told = f"an error in the cluster process: {error!r}"
        if isinstance(error, OSError):
            told = f"results cannot be kept here: {error.strerror or error}; make room on the disk"
        if told != self._trouble_here:
            logger.warning("map %s: %s", self.map_id, told, exc_info=None if isinstance(error, OSError) else error)
        self._trouble_here = told

    def _record(self, seat: Seat, outcome: mm.ItemOutcome, part: Path | None = None) -> None:
        """Write a try's end down, then let the table know of it. A result's file is in its place before its line.

        Raises:
            OSError: the disk takes nothing; nothing has changed.
        """
        report = Report(index=outcome.index, attempt=outcome.attempt, lease_id=seat.lease_id, status=outcome.status)
        if self._table.is_news(report):
            state = self._table.judge(report)
            view = None if state is None else self._item_view(seat, outcome, state)
            result = None if view is None else self._folder / outcomes.result_name(view)
            with checking.in_place(part, result):
                self._log.append(outcomes.line(report, view))
            self._table.end(report)
            seat.busy_ms += min(max(0, outcome.took_ms), 10**9)
            seat.ended += 1
        seat.unsaved.append((outcome.index, outcome.attempt))
        self._trouble_here = ""
        self._tell()

    def _item_view(self, seat: Seat, outcome: mm.ItemOutcome, state: ItemState) -> ItemView:
        number, now_ms = self._log.count + 1, self._site.clock.now_ms()
        return outcomes.item_view(self._table, seat, outcome, state, n=number, now_ms=now_ms)

    async def _save(self) -> None:
        """Tell nodes what is safe here, in the rhythm of the disk."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            due = [(seat, seat.unsaved) for seat in self._seats.values() if seat.unsaved]
            for seat, _ in due:
                seat.unsaved = []
            if not due:
                continue
            try:
                await asyncio.to_thread(self._log.sync)
            except OSError as error:
                logger.warning("map %s: outcomes cannot be forced to the disk: %s", self.map_id, error.strerror)
                for seat, keys in due:
                    seat.unsaved = keys + seat.unsaved
                continue
            for seat, keys in due:
                seat.tell_saved(keys)

    # ── nodes and their shares ───────────────────────────────────────────────────────────────────────────────────────

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                if not self.is_running or self._step():
                    await self._finish()
                    return
            except Exception as error:  # noqa: BLE001 - told and logged
                self._held_up(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):  # `wait_for` may swallow that this task is cancelled
                    await self._wake.wait()
            await asyncio.sleep(GATHER_S)  # what comes together is looked at together

    def _step(self) -> bool:
        """Look at nodes and give items; whether all is done."""
        self._seat_nodes()
        for seat in self._seats.values():
            if seat.run.state.has_ended and seat.state not in ("left", "refused"):
                seat.leave(RunStatus.INTERRUPTED, seat.run.state.reason)
                self._table.let_go(seat.lease_id)
            if seat.state == "refused" and not seat.run.state.has_ended:
                seat.leave(RunStatus.ERROR, seat.reason)
                self._table.let_go(seat.lease_id)
        self._let_leave()
        self._write_off()
        if self._table.is_complete and not self._table.open_checks(self._leases()):
            return True
        self._share()
        return False

    def _seat_nodes(self) -> None:
        now_s = self._site.clock.monotonic_s()
        for lease_id, node in self._site.attached().items():
            seat = self._seats.get(lease_id)
            is_wanted = node.is_ready and node.code.is_current and not (node.is_leaving and self._stays())
            if seat is None and is_wanted:
                self._invite(node)
            elif seat is not None:
                is_up = node.link_state == "up"
                seat.silent_since_s = None if is_up else (seat.silent_since_s or now_s)
                seat.leaving_since_s = (seat.leaving_since_s or now_s) if node.is_leaving else None

    def _stays(self) -> bool:
        """Whether a node takes part that answers and does not end soon."""
        return any(
            seat.takes_items and seat.leaving_since_s is None and seat.silent_since_s is None
            for seat in self._seats.values()
        )

    def _let_leave(self) -> None:
        """A node that will end, and has handed over or finished what it had, takes no part any more."""
        for seat in self._seats.values():
            is_done = seat.takes_items and not self._table.load(seat.lease_id)
            if is_done and seat.leaving_since_s is not None and self._stays():
                seat.leave(RunStatus.OK, "its node will end soon; others do the rest")

    def _invite(self, node: Node) -> None:
        request = self.request
        run, _ = self._site.runs.create(
            RunRequest(
                run_id=map_run_id(self.map_id, self.record.round, node.lease_id),
                lease_id=node.lease_id,
                code=request.code,
                session=MAP_SESSION,
                owner=request.owner,
                cell_id=request.cell_id,
                map_id=self.map_id,
            ),
            self._site.clock.now_ms(),
        )
        self._seat_numbers += 1
        self._seats[node.lease_id] = seat = Seat(
            node, number=self._seat_numbers, run=run, request=request, items=self._items, folder=self._folder
        )
        if node.talk.is_synced:
            seat.open()

    def _write_off(self) -> None:
        for index, attempt in self._table.lost_too_often():
            seat = next(iter(self._seats.values()))
            outcome = mm.ItemOutcome(
                map_id=self.map_id,
                index=index,
                attempt=attempt,
                status="died",
                took_ms=0,
                error_name="WorkerDied",
                error_value="each node or worker that ran this item was lost with it",
            )
            report = Report(index=index, attempt=attempt, lease_id=seat.lease_id, status="died")
            self._log.append(outcomes.line(report, self._item_view(seat, outcome, ItemState.POISONED)))
            self._table.poison(index, seat.lease_id)
            self._tell()

    def _share(self) -> None:
        now_s = self._site.clock.monotonic_s()
        if any(self._may_have_more(seat, now_s) for seat in self._seats.values()):
            return
        places = [
            Place(
                lease_id=seat.lease_id,
                slots=seat.slots,
                silent_s=0.0 if seat.silent_since_s is None else max(0.001, now_s - seat.silent_since_s),
                is_asked=seat.is_asked,
                leaving_s=None if seat.leaving_since_s is None else max(0.0, now_s - seat.leaving_since_s),
            )
            for seat in self._seats.values()
            if seat.takes_items
        ]
        for share in share_out(self._table, places, patience_s=PATIENCE_S):
            seat = self._seats[share.lease_id]
            if share.take_back:
                seat.ask_back(share.count)
                continue
            if share.copy_of:
                keys = self._table.copy(share.lease_id, share.copy_of, share.count)
            else:
                keys = self._table.take(share.lease_id, share.count)
            if keys:
                seat.feed([(self._table.base(index), (index, attempt)) for index, attempt in keys])

    @staticmethod
    def _may_have_more(seat: Seat, now_s: float) -> bool:
        """After a restart of this process: a node that has items we know nothing of, and will soon tell them."""
        is_silent_long = seat.silent_since_s is not None and now_s - seat.silent_since_s >= RECALL_S
        return seat.state == "starting" and seat.run.state.started_ms is not None and not is_silent_long

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _finish(self) -> None:
        if self.is_running:
            await asyncio.to_thread(self._log.sync)
            self._change(state=MapState.DONE, ended_ms=self._site.clock.now_ms(), reason="")
        await self._rest()

    async def _rest(self) -> None:
        """What follows from an end that is on the disk; done again where it was cut short."""
        status = RunStatus.OK if self.record.state is MapState.DONE else RunStatus.INTERRUPTED
        for seat in self._seats.values():
            seat.leave(status, self.record.reason)
            self._table.let_go(seat.lease_id)
        await self._end_tasks()
        await asyncio.to_thread(self._log.sync)
        self._tell()

    async def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, []
        own = asyncio.current_task()
        others = [task for task in tasks if task is not own]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def _leases(self) -> list[str]:
        return [seat.lease_id for seat in self._seats.values() if seat.state in ("starting", "ready")]

    def _trouble(self) -> str:
        """Why nothing goes on, if so."""
        if not self.is_running:
            return ""
        refused = [f"{seat.node.record.attach.name}: {seat.reason}" for seat in self._seats.values() if seat.reason]
        if not self._leases():
            return "; ".join(refused) or "no node is attached; the map goes on when one is"
        return self._trouble_here or next((t for s in self._seats.values() if (t := s.node.talk.trouble)), "")

    def _change(self, **fields: Any) -> None:
        record = msgspec.structs.replace(self.record, **fields)
        write_private(self._folder / "state.json", msgspec.json.encode(record))
        self.record = record
        self._wake.set()
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


_REPORTS: dict[type, Callable[[LiveMap, Seat, Any], None]] = {
    mm.MapReady: LiveMap._on_ready,  # noqa: SLF001 - this table is the class's own
    mm.ItemBegun: LiveMap._on_begun,  # noqa: SLF001
    mm.GivenBack: LiveMap._on_back,  # noqa: SLF001
    mm.ResultChunk: LiveMap._on_chunk,  # noqa: SLF001
    mm.ItemOutcome: LiveMap._on_outcome,  # noqa: SLF001
}
