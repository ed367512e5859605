"""`%%gpu --map item=items -o results`: the cell's body once for each item, over all nodes of the cluster."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import secrets
from typing import Any, NamedTuple

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import MAP_SESSION, MapNews, MapRequest, MapState, MapView, RunWish, map_run_id
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import ClusterClient
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.errors import (
    BadRequest,
    BrokerUnavailable,
    CodecError,
    GpuMarketError,
    MapErrors,
    NodeError,
    Unreachable,
)
from jupyter_gpumarket.mapfiles import PackedItem, pack
from jupyter_gpumarket.models import Lease, LeaseState, Owner
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.notebook.costline import CostLine
from jupyter_gpumarket.notebook.data import Data, is_large_array, size_words
from jupyter_gpumarket.notebook.failures import RemoteInterrupt, show_as
from jupyter_gpumarket.notebook.following import PATIENCE_S, Detached
from jupyter_gpumarket.notebook.forecast import MapFacts, MapForecast
from jupyter_gpumarket.notebook.identity import cell_id
from jupyter_gpumarket.notebook.interrupts import InterruptWatch
from jupyter_gpumarket.notebook.kernel import Notebook, is_usable
from jupyter_gpumarket.notebook.map_results import MapResults, all_maps, map_folder, mean_seconds
from jupyter_gpumarket.notebook.options import CellOptions, MapOptions
from jupyter_gpumarket.notebook.stage import Stage
from jupyter_gpumarket.notebook.values import InputValue, encode_inputs, input_value, send_inputs

# What is larger goes as a blob of its own, once per node, instead of inside of the list of items.
LARGE_ITEM_BYTES = 256 * 1024
WAIT_S = 0.5
FRAME_S = 0.25
SHOWN_ERRORS = 3
# So long a map may have no node before the door looks whether one is left at all.
WITHOUT_NODE_S = 3.0


class Plan(NamedTuple):
    """What is mapped, before any node is asked."""

    code: str
    options: CellOptions
    map: MapOptions
    items: bytes
    items_sha256: str
    items_count: int
    large: dict[str, Data]


class _Followed(NamedTuple):
    """A map that is followed."""

    map_id: str
    cluster: ClusterClient
    leases: dict[str, Lease]
    forecast: MapForecast | None = None


class MapRunner:
    """Runs the maps of one notebook."""

    def __init__(self, notebook: Notebook, shell: Any, stage: Stage) -> None:
        self._notebook = notebook
        self._shell = shell
        self._stage = stage

    def plan(self, options: CellOptions, code: str) -> Plan:
        """Everything that can go wrong before a node is rented.

        Raises:
            BadRequest: the body is no Python, or gives no result where one is wanted; the items cannot be gone through.
            CodecError: an item that cannot be sent.
        """
        assert options.map is not None
        _check_body(code, gives_result=bool(options.outputs))
        values = self._items(options.map.items)
        packed: list[PackedItem] = []
        large: dict[str, Data] = {}
        for index, value in enumerate(values):
            one = self._packed(index, value, large)
            packed.append(one)
        items = pack(packed)
        return Plan(code, options, options.map, items, hashlib.sha256(items).hexdigest(), len(values), large)

    def _packed(self, index: int, value: Any, large: dict[str, Data]) -> PackedItem:
        """An item's value inside of the list, or, when it is large, a handle to it."""
        if isinstance(value, Data):
            data = value
        elif is_large_array(value):
            data = self._notebook.data().keep_array(value)
        else:
            try:
                encoded = codecs.encode_input(value)
            except CodecError as error:
                raise CodecError(f"--map: item {index}: {error}") from None
            if len(encoded.data) <= LARGE_ITEM_BYTES:
                return PackedItem(codec=encoded.codec, data=encoded.data)
            data = self._notebook.data().keep(encoded.codec, encoded.data)
        large[data.sha256] = data
        return PackedItem(codec=data.codec, sha256=data.sha256)

    def run(self, plan: Plan, lease: Lease, owner: Owner, line: CostLine) -> MapResults | None:
        """Run it on the lease's cluster, or go on with what is unfinished; the handle when it was detached.

        Raises:
            MapErrors: items failed; the others' results are bound all the same.
            NodeError: no node is left; what is there is bound.
            KeyboardInterrupt: it was stopped; what is there is bound.
        """
        cluster = self._notebook.cluster(lease.lease_id)
        map_id = self._known(plan) if plan.map.resume else ""
        leases = self._leases_of(lease)
        forecast = None
        if map_id:
            view = self._resumed(map_id, cluster, leases, owner, plan)
        else:
            inputs = encode_inputs(plan.options.inputs, self._notebook.namespace, self._notebook.data)
            forecast = MapForecast(self._facts(plan, inputs, cluster, leases))
            for told in forecast.before():
                self._stage.say(told)
            view = self._started(plan, inputs, cluster, leases, owner)
        followed = _Followed(view.map_id, cluster, leases, forecast)
        self._notebook.last_run_id = view.map_id
        if plan.options.detach:
            self._stage.say(f"{view.map_id} runs; `gm.map_results({view.map_id!r})` reads what has ended")
            return self.results(view.map_id)
        self.finish(followed, line, bind=plan.options.outputs, tolerance=plan.map.tolerance)
        return None

    def attach(self, map_id: str, lease: Lease, line: CostLine) -> None:
        """Show a map's progress again and go on to its end."""
        cluster = self._notebook.cluster(lease.lease_id)
        self.finish(_Followed(map_id, cluster, self._leases_of(lease)), line)

    def finish(
        self, followed: _Followed, line: CostLine, *, bind: tuple[str, ...] = (), tolerance: float = 0.0
    ) -> None:
        """Follow to the end, bind the results, and raise how it ended."""
        outcome: BaseException | None = None
        view: MapView | None = None
        try:
            view = self._follow(followed, line)
        except (GpuMarketError, KeyboardInterrupt) as error:
            outcome = error
        results = self.results(followed.map_id)
        for name in bind:
            self._shell.user_ns[name] = results.values()
        if view is not None:
            line.final(self._final_text(view))
            self._tell_differences(results, view, tolerance)
            outcome = self._outcome(view, results)
        if outcome is not None:
            raise outcome

    def results(self, map_id: str) -> MapResults:
        """What is on the disk."""
        client = self._notebook.client
        folder = map_folder(client.folders.state / "clusters", map_id)
        return MapResults(folder, lambda run_id: client.run_cost(run_id).amount_nusd)

    # ── beginning ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _items(self, expression: str) -> list[Any]:
        namespace = self._notebook.namespace
        if expression.isidentifier():
            value = input_value(expression, namespace, argument="--map")
        else:
            try:
                value = self._shell.ev(expression)
            except Exception as error:
                raise BadRequest(f"--map: {expression!r} cannot be read: {type(error).__name__}: {error}") from error
        if isinstance(value, str | bytes):
            raise BadRequest(f"--map {expression}: a text is one thing, not many; wrap it in a list")
        try:
            return list(value)
        except TypeError:
            raise BadRequest(f"--map {expression}: one {type(value).__name__} cannot be gone through") from None

    def _leases_of(self, lease: Lease) -> dict[str, Lease]:
        """The open leases of the same cluster."""
        cluster_id = lease.cluster_id or lease.lease_id
        views = self._notebook.client.leases(nodes=False)
        return {
            view.lease.lease_id: view.lease
            for view in views
            if (view.lease.cluster_id or view.lease.lease_id) == cluster_id and is_usable(view.lease)
        }

    def _known(self, plan: Plan) -> str:
        """The map to resume; empty when the same cell has not been mapped before."""
        clusters = self._notebook.client.folders.state / "clusters"
        if plan.map.resume != "same":
            map_folder(clusters, plan.map.resume)
            return plan.map.resume
        for results in all_maps(clusters):
            if results.is_of(plan.code, plan.items_sha256):
                return results.map_id
        self._stage.say("nothing to resume: this cell has not been mapped over these items before; beginning")
        return ""

    def _facts(
        self, plan: Plan, inputs: list[InputValue], cluster: ClusterClient, leases: dict[str, Lease]
    ) -> MapFacts:
        """What is known of a map before it begins: sizes, nodes, money and time that are left, times of before."""
        client, now_ms = self._notebook.client, self._notebook.clock.now_ms()
        views = [view for view in client.leases(nodes=False) if view.lease.lease_id in leases]
        each = sum(value.size for value in inputs if value.handle is None or not cluster.has_blob(value.handle.sha256))
        ends = [lease.deadline_ms for lease in leases.values() if lease.deadline_ms is not None]
        return MapFacts(
            count=plan.items_count,
            bytes_in=len(plan.items) + sum(data.size for data in plan.large.values()) + each * len(leases),
            slots=sum(plan.map.slots or max(1, one.offer.gpu_count if one.offer else 1) for one in leases.values()),
            leases=tuple(leases.values()),
            left_nusd=sum(view.lease.request.budget_nusd - view.cost_nusd for view in views),
            left_s=(min(ends) - now_ms) / 1000 if ends else float("inf"),
            seconds_each=mean_seconds(client.folders.state / "clusters", plan.code),
        )

    def _started(
        self, plan: Plan, inputs: list[InputValue], cluster: ClusterClient, leases: dict[str, Lease], owner: Owner
    ) -> MapView:
        map_id = f"map{secrets.token_hex(6)}"
        self._announce(map_id, 1, leases, owner, plan.code)
        refs = send_inputs(inputs, cluster, self._stage, *leases.values())
        total = len(plan.items) + sum(data.size for data in plan.large.values())
        if plan.large:
            self._stage.say(f"sending {plan.items_count} items: {size_words(total)}, each to the node that runs it")
        cluster.put_blob(plan.items)
        for data in plan.large.values():
            cluster.give_file(data.path, data.sha256)
        return cluster.start_map(
            MapRequest(
                map_id=map_id,
                code=plan.code,
                item_name=plan.map.item_name,
                items_sha256=plan.items_sha256,
                count=plan.items_count,
                gives_result=bool(plan.options.outputs),
                inputs=refs,
                blobs=tuple(plan.large),
                slots=plan.map.slots,
                retries=plan.map.retries,
                timeout_s=plan.options.timeout_s,
                verify_ppm=plan.map.verify_ppm,
                owner=owner,
                cell_id=cell_id(self._shell),
            )
        )

    def _resumed(
        self, map_id: str, cluster: ClusterClient, leases: dict[str, Lease], owner: Owner, plan: Plan
    ) -> MapView:
        view = cluster.resume_map(map_id)
        self._announce(map_id, view.round, leases, owner, plan.code)
        self._stage.say(f"going on with {map_id}: {view.ended} of {view.count} items are there already")
        return view

    def _announce(self, map_id: str, round_: int, leases: dict[str, Lease], owner: Owner, code: str) -> None:
        """Tell the broker of each node's part, so that budgets are looked at before anything runs."""
        for lease in leases.values():
            if lease.state not in (LeaseState.READY, LeaseState.UNREACHABLE):
                continue
            self._notebook.client.start_run(
                RunWish(
                    run_id=map_run_id(map_id, round_, lease.lease_id),
                    lease_id=lease.lease_id,
                    session=MAP_SESSION,
                    owner=owner,
                    cell_id=cell_id(self._shell),
                    code_sha256=hashlib.sha256(code.encode("utf-8", "surrogatepass")).hexdigest(),
                )
            )

    # ── following ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _follow(self, followed: _Followed, line: CostLine) -> MapView:
        """Until it has ended.

        Raises:
            Detached: Ctrl-C was pressed twice.
            NodeError: no node is left, or the cluster process stayed away.
        """
        clock = self._notebook.clock
        pace = _Pace()
        after, is_stopping = 0, False
        heard_s = seated_s = clock.monotonic_s()
        with InterruptWatch() as watch:
            while True:
                try:
                    news = watch.wait(lambda: followed.cluster.map_news(followed.map_id, after, WAIT_S))  # noqa: B023
                except (Unreachable, BrokerUnavailable) as error:
                    if clock.monotonic_s() - heard_s > PATIENCE_S:
                        raise Unreachable(f"{error}; {_where_rest(followed.map_id)}") from None
                    news = None
                if news is not None:
                    heard_s, after = clock.monotonic_s(), news.map.n
                    line.live(self._live_text(news.map, followed, pace))
                    self._foresee(followed, news)
                    if news.map.state is not MapState.RUNNING:
                        return news.map
                    seated_s = seated_s if news.map.reason else heard_s
                    if heard_s - seated_s > WITHOUT_NODE_S:
                        self._refuse_without_nodes(followed, news.map)
                if watch.news():
                    if watch.is_kernels_end():
                        raise Detached("this kernel ends; the map goes on, and `%gpu attach` shows it in the next one")
                    if is_stopping:
                        raise Detached(f"detached; {_where_rest(followed.map_id)}")
                    is_stopping = True
                    self._stage.write("\n[gpumarket] stopping the map; once more detaches\n", to_stderr=True)
                    watch.wait(lambda: followed.cluster.stop_map(followed.map_id))
                watch.wait(lambda: self._notebook.pause(FRAME_S))

    def _foresee(self, followed: _Followed, news: MapNews) -> None:
        """What the first results tell of the rest."""
        if followed.forecast is not None and news.items:
            for told in followed.forecast.take(news.items, news.map.ended):
                self._stage.say(told)

    def _refuse_without_nodes(self, followed: _Followed, view: MapView) -> None:
        """Nothing goes on: because no node is left that could?

        Raises:
            NodeError: so it is.
        """
        views = self._notebook.client.leases(nodes=False)
        open_ids = {one.lease.lease_id for one in views if is_usable(one.lease)}
        refused = {seat.lease_id for seat in view.seats if seat.state in ("refused", "left")}
        followed.leases.update(self._leases_of(next(iter(followed.leases.values()))))
        if (set(followed.leases) & open_ids) - refused:
            return
        with contextlib.suppress(GpuMarketError):  # so that it can be resumed; a process that is gone needs no stopping
            followed.cluster.stop_map(followed.map_id)
        raise NodeError(
            f"{view.map_id} has no node any more ({one_line(view.reason, 500)}); {view.ended} of {view.count} items "
            f"are there; run the cell again with --resume to go on with the others on another node"
        )

    def _live_text(self, view: MapView, followed: _Followed, pace: _Pace) -> str:
        now_ms = self._notebook.clock.now_ms()
        rate = pace.rate(now_ms, view.ended)
        left = view.count - view.ended
        parts = [f"{view.map_id} · {view.ended}/{view.count}"]
        if rate > 0:
            parts.append(f"{rate:.3g}/s · {in_words(left / rate)} left")
        seated = [seat for seat in view.seats if seat.state in ("ready", "silent")]
        parts.append(f"{len(seated)} node{'' if len(seated) == 1 else 's'}, {view.running} at work")
        if view.failed + view.poisoned:
            parts.append(f"{view.failed + view.poisoned} failed")
        elapsed_ms = max(0, now_ms - view.began_ms)
        rates = sum(
            one.price_nusd_hour for key, one in followed.leases.items() if any(s.lease_id == key for s in seated)
        )
        parts.append(f"{format_usd(cost_nusd(rates, elapsed_ms), places=6)} so far")
        silent = sum(seat.state == "silent" for seat in seated)
        if silent:
            parts.append(f"{silent} not heard: the others take over what is missing")
        if view.reason:
            parts.append(one_line(view.reason))
        return " · ".join(parts)

    # ── the end ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _final_text(self, view: MapView) -> str:
        total, is_known = 0, True
        for seat in view.seats:
            try:
                cost = self._notebook.client.run_cost(seat.run_id, wait_s=1.0)
            except GpuMarketError:
                is_known = False  # the map is over; how it went must still be told
                continue
            total += cost.amount_nusd
            is_known = is_known and cost.final
        took = in_words(((view.ended_ms or view.began_ms) - view.began_ms) / 1000)
        failed = view.failed + view.poisoned
        return (
            f"{view.map_id} · {view.ok}/{view.count} items{f', {failed} failed' if failed else ''} · "
            f"{len(view.seats)} node{'' if len(view.seats) == 1 else 's'} · {took} · {format_usd(total)}"
            f"{' since it was resumed' if view.round > 1 else ''}{'' if is_known else ' so far'} · {view.state.value}"
        )

    def _tell_differences(self, results: MapResults, view: MapView, tolerance: float) -> None:
        if not view.checks:
            return
        found = results.differences(tolerance)
        if view.checked < view.checks:
            self._stage.say(
                f"verified {results.verified} of {view.checks} items: for the others there was no other machine"
            )
        for one in found[:SHOWN_ERRORS]:
            self._stage.write(
                f"[gpumarket] item {one.index} differs between {self._name(one.first)} and {self._name(one.second)}: "
                f"{one_line(one.what, 300)}\n",
                to_stderr=True,
            )
        suspects = suspected([(one.first, one.second) for one in found])
        if suspects:
            names = ", ".join(self._name(lease_id) for lease_id in suspects)
            self._stage.write(f"[gpumarket] in every difference: {names}; do not trust its results\n", to_stderr=True)
        same = results.verified - len(found)
        self._stage.say(f"verified on another machine: {same} the same, {len(found)} different")

    def _name(self, lease_id: str) -> str:
        try:
            return one_line(self._notebook.client.lease(lease_id).lease.name, 60)
        except GpuMarketError:
            return lease_id

    def _outcome(self, view: MapView, results: MapResults) -> BaseException | None:
        if view.state is MapState.STOPPED:
            reason = f"stopped after {view.ended} of {view.count} items; {_where_rest(view.map_id)}"
            return RemoteInterrupt(reason)
        errors = results.errors
        if not errors:
            return None
        error = MapErrors(
            "MapErrors",
            f"{len(errors)} of {view.count} items failed: {_numbers(list(errors))}. Their results are None; "
            f"gm.map_results({view.map_id!r}).error(i) tells the traceback, .output(i) what was printed",
        )
        error.map_id, error.failed = view.map_id, tuple(errors)
        lines: list[str] = []
        for index in list(errors)[:SHOWN_ERRORS]:
            shown = results.error(index)
            lines += ["" if shown is None else "\n".join(shown._render_traceback_()), ""]  # type: ignore[attr-defined]
        show_as(error, lambda: [*lines, f"MapErrors: {error.value}"])
        return error


class _Pace:
    """Items a second, over the last half minute."""

    def __init__(self) -> None:
        self._seen: list[tuple[int, int]] = []

    def rate(self, now_ms: int, ended: int) -> float:
        """By what was seen before; 0 when nothing has moved."""
        self._seen.append((now_ms, ended))
        self._seen = [one for one in self._seen if one[0] > now_ms - 30_000][-200:]
        (first_ms, first), (last_ms, last) = self._seen[0], self._seen[-1]
        return (last - first) * 1000 / (last_ms - first_ms) if last_ms > first_ms else 0.0


def suspected(pairs: list[tuple[str, str]]) -> list[str]:
    """Which machine is in every difference, when it is one: with two machines nobody can tell."""
    if len(pairs) < 2:
        return []
    common = set(pairs[0]).intersection(*(set(pair) for pair in pairs[1:]))
    return sorted(common) if len(common) == 1 else []


def _check_body(code: str, *, gives_result: bool) -> None:
    try:
        tree = ast.parse(code)
    except SyntaxError as error:
        raise BadRequest(
            f"--map: the cell is not plain Python in line {error.lineno}: {error.msg} (`!` and `%` are not for maps)"
        ) from None
    if gives_result and not (tree.body and isinstance(tree.body[-1], ast.Expr)):
        raise BadRequest("--map with -o: end the cell with an expression; its value is the item's result")


def _numbers(indexes: list[int]) -> str:
    shown = ", ".join(str(index) for index in indexes[:10])
    return shown if len(indexes) <= 10 else f"{shown}, … (.errors has all)"


def _where_rest(map_id: str) -> str:
    return f"`gm.map_results({map_id!r})` reads what is there, --resume goes on"
