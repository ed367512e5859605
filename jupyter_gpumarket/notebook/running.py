"""One `%%gpu` cell from its line to its cost: a node, inputs, the run, its output, results."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from concurrent.futures import CancelledError, Future
from typing import Any, NamedTuple

from jupyter_gpumarket.api import RunCost, RunRequest, RunView, RunWish
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.errors import BadRequest, GpuMarketError, LeasesChanged
from jupyter_gpumarket.models import Lease, LeaseState, Owner
from jupyter_gpumarket.money import format_usd
from jupyter_gpumarket.notebook import renting
from jupyter_gpumarket.notebook.costline import CostLine, final_text, place_of
from jupyter_gpumarket.notebook.failures import error_of
from jupyter_gpumarket.notebook.fanout import Heads
from jupyter_gpumarket.notebook.fitting import misfit
from jupyter_gpumarket.notebook.following import Followed, Follower
from jupyter_gpumarket.notebook.handle import RunHandle
from jupyter_gpumarket.notebook.identity import cell_id
from jupyter_gpumarket.notebook.kernel import Notebook
from jupyter_gpumarket.notebook.map_results import MapResults
from jupyter_gpumarket.notebook.mapping import MapRunner
from jupyter_gpumarket.notebook.options import CellOptions
from jupyter_gpumarket.notebook.stage import Stage
from jupyter_gpumarket.notebook.sync import Prepared, Syncer
from jupyter_gpumarket.notebook.values import InputValue, encode_inputs, fetch_outputs, send_inputs

# The cluster process tells the broker of a run's end over HTTP; usually within milliseconds.
FINAL_COST_PATIENCE_S = 5.0
FINAL_COST_WAIT_S = 0.5
EARLY_COST_WAIT_S = 2.0


class _Cell(NamedTuple):
    """What is run, wherever it is run."""

    code: str
    options: CellOptions
    owner: Owner
    values: list[InputValue]
    cell_id: str


class CellRunner:
    """Runs `%%gpu` cells of one notebook."""

    def __init__(self, notebook: Notebook, shell: Any) -> None:
        self._notebook = notebook
        self._shell = shell
        self._stage = Stage(shell)
        self._heads = Heads(notebook, self._stage)
        self.maps = MapRunner(notebook, shell, self._stage)
        self.syncer = Syncer(notebook.cluster, self._stage)

    def run(self, options: CellOptions, code: str) -> RunHandle | MapResults | None:
        """Run a cell, once or for each of many items; a handle when it was detached.

        Raises:
            RemoteError: the cell failed on the node. KeyboardInterrupt: it was interrupted.
            GpuMarketError: everything else that went wrong, before or after.
        """
        if options.dry_run:
            self._dry_run(options, code)
            return None
        if options.map is not None:
            return self._map(options, code)
        values = encode_inputs(options.inputs, self._notebook.namespace, self._notebook.data)
        own_code = self.syncer.prepare(options.sync, code) if options.sync else None
        owner = self._notebook.owner(options.project)
        line = self._line(secrets.token_hex(8))
        cell = _Cell(code, options, owner, values, cell_id(self._shell))
        runs = self._started(cell, line, own_code)
        if options.detach:
            return self._detached(runs)
        self.finish(runs, line)
        return None

    def _started(self, cell: _Cell, line: CostLine, own_code: Prepared | None) -> list[Followed]:
        options = cell.options
        if not (options.new or options.on_all or options.node or own_code is not None):
            # The usual case: the node of the cell before. The broker says so in time when anything is new about it.
            lease = self._existing(options, as_seen=True)
            if lease is not None and lease.state is LeaseState.READY:
                with contextlib.suppress(LeasesChanged):
                    run = self._start(lease, cell, sight=self._notebook.sight, begins_now=options.detach)
                    self._notebook.use(lease.lease_id)
                    return [run]
        leases = self._nodes(options, cell.owner, line)
        if own_code is not None:
            self.syncer.bring(own_code, leases)
        is_one_of_many = len(leases) > 1
        # Several begin before any is waited for; so does one that nobody waits for.
        begins_now = options.detach or is_one_of_many
        return [self._start(lease, cell, is_one_of_many=is_one_of_many, begins_now=begins_now) for lease in leases]

    def _map(self, options: CellOptions, code: str) -> MapResults | None:
        plan = self.maps.plan(options, code)
        if not plan.items_count:
            self._shell.user_ns.update({name: [] for name in options.outputs})
            self._stage.say("there are no items: nothing was run")
            return None
        own_code = self.syncer.prepare(options.sync, code) if options.sync else None
        owner = self._notebook.owner(options.project)
        line = self._line(secrets.token_hex(8))
        (lease,) = self._nodes(options, owner, line)
        if own_code is not None:
            self.syncer.bring(own_code, [lease])
        return self.maps.run(plan, lease, owner, line)

    def finish(self, runs: list[Followed], line: CostLine | None = None) -> None:
        """Follow runs to their end, show what they cost, bring their results, and raise how they ended."""
        line = line or self._line(runs[0].run_id)
        first = runs[0]
        line.announce(first.run_id, first.place.name)
        # Asked for before it is there: of a short cell it is known as soon as its end.
        early = {run.run_id: self._notebook.client.ahead.run_cost(run.run_id, wait_s=EARLY_COST_WAIT_S) for run in runs}
        Follower(self._stage, line, self._notebook.clock, self._notebook.pause).follow(runs)
        costs = [_early_cost(early[run.run_id]) or self._known_cost(run) for run in runs]
        known = [cost for cost in costs if isinstance(cost, RunCost)]
        if len(known) == len(runs):
            amount_nusd, final = sum(cost.amount_nusd for cost in known), all(cost.final for cost in known)
            line.announce(first.run_id, first.place.name, amount_nusd=amount_nusd, final=final)
        line.final("\n".join(_cost_text(run, cost) for run, cost in zip(runs, costs, strict=True)))
        errors = [error for run in runs if (error := self._outcome(run)) is not None]
        if errors:
            for error in errors[1:]:
                self._stage.write(f"{error}\n", to_stderr=True)
            raise errors[0]

    def attach_map(self, map_id: str, lease: Lease) -> None:
        """Show a map's progress again and go on to its end."""
        self.maps.attach(map_id, lease, self._line(secrets.token_hex(8)))

    def _line(self, key: str) -> CostLine:
        return CostLine(self._stage, f"gpum-cost-{key}", self._notebook.clock)

    def _dry_run(self, options: CellOptions, code: str) -> None:
        if options.sync is not None:
            self.syncer.show(self.syncer.prepare(options.sync, code))
        lease = None if options.new else self._existing(options)
        if lease is not None:
            self._stage.say(
                f"would run on {lease.name}, which is yours already at {format_usd(lease.price_nusd_hour)}/h"
            )
            return
        wish = options.wish
        found = renting.best_offers(self._notebook, wish)
        worst = format_usd(renting.worst_case_nusd(wish, found.offers), places=2)
        self._stage.table(renting.offers_table(found.offers, f"would rent the first of these; worst case {worst}"))

    def _nodes(self, options: CellOptions, owner: Owner, line: CostLine) -> list[Lease]:
        if options.on_all:
            views = self._notebook.leases(with_nodes=False)
            if not views:
                raise BadRequest("--on all: this notebook has no node yet; `%gpu rent` rents one")
            return [self._made_ready(view.lease, line) for view in views]
        lease = None if options.new else self._existing(options)
        if lease is None:
            self._tell_lost()
            return [renting.rent(self._notebook, self._stage, line, options.wish, owner)]
        self._notebook.use(lease.lease_id)
        return [self._made_ready(lease, line)]

    def _existing(self, options: CellOptions, *, as_seen: bool = False) -> Lease | None:
        """The node that the cell goes to, if one is there: the named one, else this notebook's that fits."""
        if options.node:
            return self._notebook.named(options.node).lease
        views = self._notebook.leases(with_nodes=False, as_seen=as_seen)
        for view in views:
            for notice in self._notebook.fresh_notices(view):
                self._stage.write(f"[gpumarket] {view.lease.name}: {one_line(notice, 500)}\n", to_stderr=True)
            if misfit(view.lease, options.wish.query) is None:
                return self._heads.for_cell(view.lease, views)
        if views and not as_seen:
            lease = views[0].lease
            self._stage.say(f"{lease.name} does not fit ({misfit(lease, options.wish.query)}): another node is needed")
        return None

    def _tell_lost(self) -> None:
        lost = self._notebook.lost()
        if lost is not None:
            reason = f" ({one_line(lost.reason, 300)})" if lost.reason else ""
            self._stage.say(f"{one_line(lost.name)} is no more{reason}, and the variables on it with it")

    def _made_ready(self, lease: Lease, line: CostLine) -> Lease:
        if lease.state in (LeaseState.READY, LeaseState.UNREACHABLE):
            return lease
        return renting.wait_ready(self._notebook, line, lease)

    def _start(
        self, lease: Lease, cell: _Cell, *, begins_now: bool, is_one_of_many: bool = False, sight: str = ""
    ) -> Followed:
        run_id = secrets.token_hex(8)
        cluster = self._notebook.cluster(lease.lease_id)
        code_sha256 = hashlib.sha256(cell.code.encode("utf-8", "surrogatepass")).hexdigest()
        wish = RunWish(
            run_id=run_id,
            lease_id=lease.lease_id,
            session=cell.options.session,
            owner=cell.owner,
            cell_id=cell.cell_id,
            code_sha256=code_sha256,
            sight=sight,
        )
        self._notebook.client.start_run(wish)
        request = RunRequest(
            run_id=run_id,
            lease_id=lease.lease_id,
            code=cell.code,
            session=cell.options.session,
            inputs=send_inputs(cell.values, cluster, self._stage, lease),
            outputs=cell.options.outputs,
            timeout_s=cell.options.timeout_s,
            owner=cell.owner,
            cell_id=cell.cell_id,
        )
        if begins_now:
            cluster.run(request)
        self._notebook.last_run_id = run_id
        trusted = self.is_trusted(lease) or cell.options.wish.trust
        prefix = f"[{lease.name}] " if is_one_of_many else ""
        followed = Followed(
            run_id,
            cluster,
            place_of(lease),
            trusted=trusted,
            prefix=prefix,
            request=None if begins_now else request,
        )
        followed.forecast = self._heads.forecast(lease)
        return followed

    def is_trusted(self, lease: Lease) -> bool:
        """Whether the user has said that this node is their own."""
        marketplace = lease.offer.marketplace if lease.offer else ""
        return lease.request.trusted or marketplace in self._notebook.settings.trust

    def _detached(self, runs: list[Followed]) -> RunHandle:
        for run in runs:
            self._stage.say(f"{run.place.name} runs it as {run.run_id}; `%gpu attach {run.run_id}` shows its output")
        return RunHandle(runs[0].run_id, runs[0].cluster, runs[0].place.name)

    def _known_cost(self, run: Followed) -> RunCost | GpuMarketError:
        """What a run cost, or why that is not known: the cell itself is over, and how it went must still be told."""
        try:
            return self._final_cost(run.run_id)
        except GpuMarketError as error:
            return error

    def _final_cost(self, run_id: str) -> RunCost:
        clock = self._notebook.clock
        deadline_s = clock.monotonic_s() + FINAL_COST_PATIENCE_S
        while True:
            cost = self._notebook.client.run_cost(run_id, wait_s=FINAL_COST_WAIT_S)
            if cost.final or clock.monotonic_s() > deadline_s:
                return cost

    def _outcome(self, run: Followed) -> BaseException | None:
        view = run.view
        assert view is not None, "a followed run has been seen"
        error = error_of(view, run.place.name)
        try:
            self._fetch(view, run)
        except GpuMarketError as failed:
            return error or failed
        return error

    def _fetch(self, view: RunView, run: Followed) -> None:
        namespace = self._shell.user_ns
        fetch_outputs(view, run.cluster, namespace, self._stage, self._notebook.clock)


def _early_cost(asked: Future[RunCost]) -> RunCost | None:
    """The answer to a question that was asked when the cell began, where it was the final one."""
    try:
        cost = asked.result(FINAL_COST_WAIT_S)
    except (GpuMarketError, TimeoutError, CancelledError):
        return None
    return cost if cost.final else None


def _cost_text(run: Followed, cost: RunCost | GpuMarketError) -> str:
    if isinstance(cost, GpuMarketError):
        return f"{run.place.name} · the cost is not known yet ({cost}); `%gpu cost` tells it later"
    return run.prefix + final_text(run.place, cost)
