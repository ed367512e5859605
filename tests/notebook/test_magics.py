"""`%%gpu` in a real shell against a fake broker: what is rented, sent, shown, raised, and said."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.api import FilterStep, MarketplaceStatus
from jupyter_gpumarket.config import Folders, Settings
from jupyter_gpumarket.errors import (
    BadRequest,
    BrokerUnavailable,
    BudgetExceeded,
    CodecError,
    ConfigError,
    LeaseFailed,
    NodeError,
    NoMatchingOffer,
    RemoteError,
)
from jupyter_gpumarket.models import LeaseState, RunStatus
from jupyter_gpumarket.money import usd
from tests.notebook.conftest import Room
from tests.notebook.fakes import Script, failed, offer, shown, text


def script(room: Room, code: str, **fields: Any) -> Script:
    made = Script(**fields)
    room.client.script_for_new[code] = made
    return made


def cluster(room: Room, lease: str = "lease-1") -> Any:
    return room.client.clusters[lease]


# ── renting ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_first_cell_rents_and_the_next_ones_use_the_same_node(room: Room) -> None:
    """One lease serves all cells of a notebook."""
    room.must_run("%%gpu\npass")
    room.must_run("%%gpu\npass")

    assert len(room.client.wishes) == 1
    assert [request.lease_id for request in cluster(room).requests] == ["lease-1", "lease-1"]


def test_offer_price_budget_and_worst_case_are_shown_before_renting(room: Room) -> None:
    """What will be rented, for how much, and the most it can cost is said before money is spent."""
    room.must_run("%%gpu --budget 1.00 --hours 4\npass")

    assert "1 × RTX4090 24 GB at pool, eu-lab, $0.35/h" in room.out
    assert "budget $1.00" in room.out
    assert "worst case $1.00" in room.out  # 4 h at the dearer $0.50 would be $2.00


def test_arguments_reach_the_request(room: Room) -> None:
    """Each argument of the line is in what the broker is asked for."""
    room.must_run(
        '%%gpu --gpu "RTX4090|A100:24GB" --vram 24 --count 1 --max-price 2.50 --budget 1.00 --hours 2 --name fox '
        "--marketplace pool --region eu --project p --session s --timeout 20m\npass"
    )
    wish = room.client.wishes[0]
    request = cluster(room).requests[0]

    assert (wish.query.gpu, wish.query.vram_gib, wish.query.gpu_count) == ("RTX4090|A100:24GB", 24, 1)
    assert (wish.query.max_price_nusd_hour, wish.budget_nusd, wish.max_s) == (usd("2.50"), usd("1.00"), 7200)
    assert (wish.name, wish.query.marketplaces, wish.query.region) == ("fox", ("pool",), "eu")
    assert (wish.owner.project, wish.owner.notebook) == ("p", "lab/one.ipynb")
    assert (request.session, request.timeout_s) == ("s", 1200.0)


def test_where_nobody_can_answer_nothing_is_rented(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --yes and without somebody to ask, the cell fails and says how to allow it."""
    room.settings = Settings(ask=True)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))  # an input that ends at once

    error = room.run("%%gpu\npass")

    assert isinstance(error, ConfigError)
    assert "--yes" in str(error)
    assert room.client.wishes == []


def test_interrupt_while_being_asked_says_that_nothing_was_spent(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at the question is a no, in one line."""

    def interrupted(_: str) -> str:
        raise KeyboardInterrupt

    room.settings = Settings(ask=True)
    monkeypatch.setattr("builtins.input", interrupted)
    error = room.run("%%gpu\npass")

    assert isinstance(error, KeyboardInterrupt)
    assert "nothing was spent" in str(error)
    assert room.client.wishes == []


@pytest.mark.parametrize(("answer", "wishes"), [("y\n", 1), ("n\n", 0), ("\n", 0)])
def test_renting_waits_for_a_yes(room: Room, monkeypatch: pytest.MonkeyPatch, answer: str, wishes: int) -> None:
    """Only a clear yes rents."""
    room.settings = Settings(ask=True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))

    room.run("%%gpu\npass")

    assert len(room.client.wishes) == wishes


def test_phases_are_shown_while_waiting(room: Room) -> None:
    """The line under the cell tells each phase with its time."""
    room.must_run("%%gpu\npass")

    assert any("quote 0.3 s → contract 0.3 s → boot" in line for line in room.lines)


def test_interrupt_while_renting_gives_the_node_back(room: Room) -> None:
    """Ctrl-C before the node is ready releases it, and the cell is interrupted."""
    calls = iter(range(100))

    def press() -> None:
        if next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    room.client.on_lease = press
    error = room.run("%%gpu\npass")

    assert isinstance(error, KeyboardInterrupt)
    assert room.client.views["lease-1"].lease.state is LeaseState.RELEASED
    assert "given back" in room.out


def test_an_interrupted_wish_is_released_for_certain(room: Room) -> None:
    """Ctrl-C while the broker is asked: whether or not the call arrived, nothing stays rented."""
    wish = room.client.wish

    def interrupted(request: Any) -> Any:
        room.client.wish = wish  # type: ignore[method-assign]
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("not reached")

    room.client.wish = interrupted  # type: ignore[method-assign]
    error = room.run("%%gpu\npass")

    assert isinstance(error, KeyboardInterrupt)
    assert room.client.leases() == []


def test_a_node_that_ended_meanwhile_is_told(room: Room) -> None:
    """The next cell says that the node and its variables are gone, and rents another."""
    room.must_run("%%gpu\npass")
    room.client.end("lease-1", "the budget of $5.00 is used up")
    room.must_run("%%gpu\npass")

    assert "node-1 is no more (the budget of $5.00 is used up)" in room.out
    assert len(room.client.wishes) == 2


def test_a_notice_of_the_broker_is_told_once(room: Room) -> None:
    """A budget at 80 % is said under the next cell, and not again."""
    room.must_run("%%gpu\npass")
    room.client.notice("lease-1", "80 % of the budget is used")
    room.must_run("%%gpu\npass")
    room.must_run("%%gpu\npass")

    assert room.err.count("80 % of the budget is used") == 1


def test_a_failed_lease_fails_the_cell_with_its_reason(room: Room) -> None:
    """No node: the message tells why."""
    room.client.path = [LeaseState.QUOTING, LeaseState.BOOTING, LeaseState.FAILED]

    error = room.run("%%gpu\npass")

    assert isinstance(error, LeaseFailed)
    assert "no boot within 10 min" in str(error)


def test_dry_run_spends_nothing(room: Room) -> None:
    """--dry-run shows offers and worst case, and asks for no lease."""
    room.must_run("%%gpu --dry-run\npass")

    assert room.client.wishes == []
    assert "worst case $1.00" in room.published[0]["data"]["text/plain"]


def test_a_restarted_kernel_finds_its_node_again(room: Room) -> None:
    """The notebook's name is enough to find the node."""
    room.must_run("%%gpu\npass")
    room.another_kernel()
    room.must_run("%%gpu\npass")

    assert len(room.client.wishes) == 1


def test_another_notebook_does_not_take_the_node(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node belongs to the notebook that rented it."""
    room.must_run("%%gpu\npass")
    monkeypatch.setenv("JUPYTER_GPUMARKET_NOTEBOOK", "lab/two.ipynb")
    room.another_kernel()
    room.must_run("%%gpu\npass")

    assert len(room.client.wishes) == 2


def test_a_node_that_does_not_fit_is_not_used(room: Room) -> None:
    """Asking for more than the current node has rents another one, and says why."""
    room.must_run("%%gpu\npass")
    room.client.listed = [offer("o9", "2.00", gpu="A100-80GB", gpu_raw="A100 80GB", vram_gib=80.0)]
    room.must_run("%%gpu --vram 80\npass")

    assert len(room.client.wishes) == 2
    assert "does not fit" in room.out


def test_new_rents_another_node_and_node_names_one(room: Room) -> None:
    """--new adds a node; --node picks one by name."""
    room.must_run("%%gpu --name ant\npass")
    room.must_run("%%gpu --new --name bee\npass")
    room.must_run("%%gpu --node ant\npass")

    assert len(room.client.wishes) == 2
    assert len(cluster(room, "lease-1").requests) == 2


def test_on_all_runs_on_every_node_with_prefixed_output(room: Room) -> None:
    """--on all: each node of the notebook runs the cell, and each line tells whose it is."""
    script(room, "print(1)", messages=[text("1\n")])
    room.must_run("%%gpu --name ant\npass")
    room.must_run("%%gpu --new --name bee\npass")
    room.must_run("%%gpu --on all\nprint(1)")

    assert "[ant] 1\n" in room.out
    assert "[bee] 1\n" in room.out


# ── bad input ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--budget x", "--budget"),
        ("--budget 0", "above zero"),
        ("--max-price -1", "--max-price"),
        ("--hours x", "--hours"),
        ("--timeout soon", "20m"),
        ("--on some", "'all'"),
        ("-i 1x", "not the name of a variable"),
        ("-o class", "not the name of a variable"),
        ("--node a --new", "one of them"),
        ("--frobnicate", "%%gpu?"),
        ("--gpu 'H100", "cannot read"),
        ("--count -1", "--count"),
        ("--session ../main", "--session"),
    ],
)
def test_an_argument_that_cannot_be_read_is_named(room: Room, line: str, said: str) -> None:
    """Bad arguments fail the cell before anything is asked or spent."""
    error = room.run(f"%%gpu {line}\npass")

    assert isinstance(error, BadRequest)
    assert said in str(error)
    assert room.client.wishes == []


def test_an_unknown_input_names_the_nearest_and_rents_nothing(room: Room) -> None:
    """-i of a variable that is not there."""
    room.must_run("weights = 1")
    error = room.run("%%gpu -i wieghts\npass")

    assert isinstance(error, BadRequest)
    assert "did you mean weights?" in str(error)
    assert room.client.wishes == []


def test_an_input_that_cannot_be_sent_rents_nothing(room: Room) -> None:
    """-i of a value that cannot be pickled names the variable."""
    room.must_run("import threading; lock = threading.Lock()")
    error = room.run("%%gpu -i lock\npass")

    assert isinstance(error, CodecError)
    assert "-i lock" in str(error)
    assert room.client.wishes == []


def test_an_unknown_node_names_those_that_run(room: Room) -> None:
    """--node of a name that is not there."""
    room.must_run("%%gpu --name ant\npass")
    error = room.run("%%gpu --node aunt\npass")

    assert isinstance(error, BadRequest)
    assert "running: ant" in str(error)


def test_nothing_fits_names_the_filter_that_removed_the_last(room: Room) -> None:
    """No offer: which condition to loosen."""
    room.client.listed = []
    room.client.steps = [
        FilterStep(filter="GPU any", before=2, after=2),
        FilterStep(filter="price <= $0.10/h", before=2, after=0),
    ]

    error = room.run("%%gpu --max-price 0.10\npass")

    assert isinstance(error, NoMatchingOffer)
    assert "price <= $0.10/h" in str(error)


def test_no_marketplace_says_how_to_start_one(room: Room) -> None:
    """Nothing is set up."""
    room.client.listed, room.client.statuses = [], []
    error = room.run("%%gpu\npass")

    assert isinstance(error, ConfigError)
    assert "jupyter gpumarket demo" in str(error)


def test_no_marketplace_answers(room: Room) -> None:
    """All are down: each one's message is told."""
    room.client.listed = []
    room.client.statuses = [MarketplaceStatus(marketplace="pool", ok=False, offers=0, age_s=0, message="refused")]
    error = room.run("%%gpu\npass")

    assert isinstance(error, ConfigError)
    assert "pool: refused" in str(error)


def test_a_budget_below_the_least_charge_is_refused(room: Room) -> None:
    """A budget that pays for nothing is refused with both amounts."""
    error = room.run("%%gpu --budget 0.001\npass")

    assert isinstance(error, BudgetExceeded)
    assert "$0.001" in str(error)
    assert room.client.wishes == []


def test_a_used_up_budget_stops_the_cell_before_it_runs(room: Room) -> None:
    """The broker's refusal reaches the cell and nothing is sent to the node."""
    room.must_run("%%gpu\npass")
    room.client.refuse_run = BudgetExceeded("the notebook's budget of $5.00 is used up")
    error = room.run("%%gpu\npass")

    assert isinstance(error, BudgetExceeded)
    assert len(cluster(room).requests) == 1


# ── output ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_streams_go_to_their_own_stream(room: Room) -> None:
    """stdout is stdout, stderr is stderr."""
    script(room, "go", messages=[text("out\n"), text("err\n", "stderr")])
    room.must_run("%%gpu\ngo")

    assert "out\n" in room.out
    assert "err\n" in room.err


def test_a_display_can_be_updated_under_its_own_id(room: Room) -> None:
    """display_data and update_display_data keep their tie, under an id of this run."""
    messages = [
        shown("display_data", {"text/plain": "one"}, "bar"),
        text("x"),
        shown("update_display_data", {"text/plain": "two"}, "bar"),
    ]
    script(room, "go", messages=messages, per_look=1)
    room.must_run("%%gpu\ngo")
    mine = [one for one in room.published if (one.get("metadata") or {}).get("gpumarket")]

    assert [(one["data"]["text/plain"], one["update"]) for one in mine] == [("one", False), ("two", True)]
    assert len({one["transient"]["display_id"] for one in mine}) == 1
    assert mine[0]["transient"]["display_id"].startswith("gpum-")
    assert mine[0]["metadata"]["gpumarket"]["untrusted"] is True


def test_the_value_of_a_cell_is_shown_as_a_result(room: Room) -> None:
    """execute_result comes out of the shell's own display hook."""
    script(room, "6*7", messages=[shown("execute_result", {"text/plain": "42"})])
    room.must_run("%%gpu\n6*7")

    assert "Out[1]: 42" in room.out


def test_hostile_html_does_not_reach_the_page_and_trusted_html_does(room: Room) -> None:
    """A script is cleaned away; with --trust (one's own node) it passes, which shows what the cleaning is for."""
    payload = {"text/html": "<b>hi</b><script>alert(1)</script>", "text/plain": "x"}
    script(room, "go", messages=[shown("display_data", payload)])
    room.must_run("%%gpu\ngo")
    room.must_run("%%gpu --trust\ngo")
    first, second = (
        one["data"]["text/html"] for one in room.published if "hi" in one.get("data", {}).get("text/html", "")
    )

    assert "<script" not in first
    assert "<script" in second


def test_clear_output_keeps_the_cost_line(room: Room) -> None:
    """After a remote clear_output the line is put back, and the waiting clear comes only with new output."""
    messages = [text("old\n"), ("clear_output", {"wait": True}), text("new\n")]
    script(room, "go", messages=messages, per_look=1)
    room.must_run("%%gpu\ngo")
    kinds = ["clear" if "clear" in one else "line" for one in room.published]
    place = kinds.index("clear")

    assert kinds[place + 1] == "line"
    assert room.published[place + 1]["update"] is False


def test_the_cost_line_is_final_to_the_nano_dollar(room: Room) -> None:
    """One display, live and then final, with the ledger's amount."""
    room.client.costs_until_final = 3
    script(room, "go", messages=[text("x\n")] * 50, per_look=1)
    room.must_run("%%gpu\ngo")
    ids = {
        one["transient"]["display_id"]
        for one in room.published
        if "data" in one and one.get("transient", {}).get("display_id", "").startswith("gpum-cost")
    }

    assert len(ids) == 1
    assert "node-1 · RTX4090 · 3.0 s · $0.000291667 · $0.35/h · done" in room.lines[-1]
    assert "boot $0.0006, idle $0.000108333" in room.lines[-1]
    assert any("so far · $0.35/h · running" in line for line in room.lines[:-1])


def test_the_cost_line_is_not_redrawn_more_than_twice_a_second(room: Room) -> None:
    """However many messages come, the line is updated at most every half second."""
    script(room, "go", messages=[text("x\n")] * 200, per_look=1)
    started_s = room.clock.now_s
    room.must_run("%%gpu\ngo")
    seconds = room.clock.now_s - started_s

    assert len(room.lines) <= seconds * 2 + 3


def test_a_plain_terminal_gets_only_the_final_line(room: Room) -> None:
    """Without a front end that can update displays, one line is printed at the end."""
    del room.shell.kernel
    room.another_kernel()
    script(room, "go", messages=[text("x\n")] * 5, per_look=1)
    room.must_run("%%gpu\ngo")

    assert room.out.count("$0.35/h ·") == 1
    assert room.lines == []


def test_a_truncated_run_says_where_the_rest_is(room: Room) -> None:
    """Past the bound the reader is told the file that has it all."""
    script(room, "go", messages=[text("x\n"), ("truncated", {"text": "10 MB shown"})], spill_path="/state/run/all.txt")
    room.must_run("%%gpu\ngo")

    assert "10 MB shown; the rest goes to /state/run/all.txt" in room.err


def test_what_holds_output_up_on_this_side_is_told_in_the_line(room: Room) -> None:
    """With a full disk the cell goes on unseen: the line says why nothing comes."""
    script(room, "go", messages=[text("x\n")] * 20, per_look=1, link_detail="make room on the disk")
    room.must_run("%%gpu\ngo")

    assert any("running, but make room on the disk" in line for line in room.lines)


def test_a_lost_link_is_told_and_output_goes_on(room: Room) -> None:
    """While the link is down the line says so; what comes afterwards is shown once."""
    script(room, "go", messages=[text("a\n"), text("b\n")], per_look=1, links=["up", "lost", "lost", "up"])
    room.must_run("%%gpu\ngo")

    assert any("link lost" in line and "nothing is lost" in line for line in room.lines)
    assert "a\nb\n" in room.out
    assert room.out.count("b\n") == 1


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "value"), [("ValueError", "no"), ("SyntaxError", "invalid syntax (<cell>, line 1)"), ("SystemExit", "0")]
)
def test_a_remote_error_fails_the_cell_and_is_shown_once(room: Room, name: str, value: str) -> None:
    """The remote traceback is shown, once, and the cell fails; the local kernel lives on."""
    script(room, "go", messages=[failed(name, value)], status=RunStatus.ERROR)
    error = room.run("%%gpu\ngo")

    assert isinstance(error, RemoteError)
    assert (error.name, error.value) == (name, value)
    assert (room.out + room.err).count(f": {value}\n") == 1
    assert "jupyter_gpumarket/" not in room.out + room.err
    room.must_run("1 + 1")


def test_a_cell_like_the_one_before_does_not_ask_for_leases(room: Room) -> None:
    """The broker itself says when they have changed; then they are looked at, and the cell runs once."""
    room.must_run("%%gpu\npass")
    looks, leases = [], room.client.leases

    def counted(**asked: Any) -> Any:
        looks.append(asked)
        return leases(**asked)

    room.must_run("%%gpu\npass")
    room.client.leases = counted  # type: ignore[method-assign]
    room.must_run("%%gpu\npass")
    quiet_looks = len(looks) - 1  # the fake broker's own, when it compares
    room.client.notice("lease-1", "its budget runs out")
    room.must_run("%%gpu\npass")

    assert quiet_looks == 0
    assert "its budget runs out" in room.err
    assert len(cluster(room).requests) == 4


def test_interrupt_while_a_cell_is_begun_still_reaches_the_node(room: Room) -> None:
    """Ctrl-C in the very call that begins the cell: it may have begun, so it is begun for certain and interrupted."""

    def press(look: int) -> None:
        if look == 1:
            os.kill(os.getpid(), signal.SIGINT)

    script(room, "go", on_look=press, until_interrupted=True, status=RunStatus.INTERRUPTED)
    error = room.run("%%gpu\ngo")

    assert isinstance(error, KeyboardInterrupt)
    assert len(cluster(room).interrupts) == 1


def test_interrupt_reaches_the_node_and_is_raised_again(room: Room) -> None:
    """Ctrl-C: the remote cell is interrupted, its last output still shown, and KeyboardInterrupt stops "Run all"."""

    def press(look: int) -> None:
        if look == 2:
            os.kill(os.getpid(), signal.SIGINT)

    messages = [text("before\n"), text("after\n")]
    script(
        room, "go", messages=messages, per_look=1, on_look=press, until_interrupted=True, status=RunStatus.INTERRUPTED
    )
    error = room.run("%%gpu\ngo")

    assert isinstance(error, KeyboardInterrupt)
    assert len(cluster(room).interrupts) == 1
    assert "before\n" in room.out
    assert "after\n" in room.out
    assert room.lines[-1].count("$") > 0


def test_a_second_interrupt_detaches(room: Room) -> None:
    """Ctrl-C twice leaves a stubborn cell to itself and says how to see it again."""

    def press(look: int) -> None:
        if look in (2, 4):
            os.kill(os.getpid(), signal.SIGINT)

    script(room, "go", messages=[text("x\n")] * 50, per_look=1, on_look=press)
    error = room.run("%%gpu\ngo")

    assert isinstance(error, KeyboardInterrupt)
    assert "%gpu attach" in str(error)
    assert room.lines[-1] != ""


def test_a_broker_without_an_answer_does_not_hide_how_the_cell_ended(room: Room) -> None:
    """The cost cannot be told, the remote error is."""

    def no_cost(run_id: str, **_: Any) -> Any:
        raise BrokerUnavailable("the broker ended")

    script(room, "go", messages=[failed("ValueError", "no")], status=RunStatus.ERROR)
    room.client.run_cost = no_cost  # type: ignore[method-assign]
    error = room.run("%%gpu\ngo")

    assert isinstance(error, RemoteError)
    assert "the cost is not known yet" in room.lines[-1]


def test_a_lost_node_is_told_with_the_way_on(room: Room) -> None:
    """The node died: the cell fails and says what to do."""
    script(room, "go", status=RunStatus.LOST, reason="killed")
    error = room.run("%%gpu\ngo")

    assert isinstance(error, NodeError)
    assert "run the cell again" in str(error)


def test_a_timed_out_cell_fails(room: Room) -> None:
    """--timeout ends the cell as a failure."""
    script(room, "go", status=RunStatus.TIMED_OUT, reason="longer than 1 s")
    error = room.run("%%gpu --timeout 1s\ngo")

    assert isinstance(error, RemoteError)
    assert error.name == "TimeoutError"


# ── variables ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_inputs_are_sent_and_outputs_assigned(room: Room) -> None:
    """-i goes out as a blob by content; -o becomes a variable here."""
    room.must_run("x = {'a': [1, 2]}")
    script(room, "go", outputs={"z": {"loss": [0.5, 0.25]}})
    room.must_run("%%gpu -i x -o z\ngo")
    request = cluster(room).requests[0]

    assert [ref.name for ref in request.inputs] == ["x"]
    assert request.inputs[0].sha256 in cluster(room).blobs
    assert request.outputs == ("z",)
    assert room.shell.user_ns["z"] == {"loss": [0.5, 0.25]}


def test_large_inputs_tell_size_time_and_price_and_go_once(room: Room, tmp_path: Path) -> None:
    """Over 8 MiB size, expected time and price are shown; the same value for a second cell is not sent again."""
    room.client.folders = Folders(tmp_path, tmp_path)
    room.must_run("x = bytes(9 * 2**20)")
    room.must_run("%%gpu -i x\ngo")
    room.must_run("%%gpu -i x\ngo")

    assert room.out.count("sending x: ") == 1
    assert "MB, expected" in room.out
    assert "of the node's time, traffic $" in room.out


def test_an_output_without_a_codec_fails_the_cell_after_the_others_came(room: Room) -> None:
    """One result that cannot come does not hold back the others, and the cell fails with the reason."""
    script(room, "go", outputs={"z": 1}, failed_outputs={"m": "a Model has no codec; return m.state_dict()"})
    error = room.run("%%gpu -o z,m\ngo")

    assert isinstance(error, CodecError)
    assert "m: a Model has no codec; return m.state_dict()" in str(error)
    assert room.shell.user_ns["z"] == 1


# ── detach and attach ────────────────────────────────────────────────────────────────────────────────────────────────


def test_detach_returns_at_once_and_attach_shows_everything(room: Room) -> None:
    """A detached run is seen from its first message on, and its results come with it."""
    script(room, "go", messages=[text("one\n"), text("two\n")], outputs={"z": 7})
    room.must_run("%%gpu --detach -o z\ngo")
    assert "one\n" not in room.out
    room.another_kernel()
    room.must_run("%gpu attach")

    assert "one\ntwo\n" in room.out
    assert room.shell.user_ns["z"] == 7


def test_attach_without_a_run_says_so(room: Room) -> None:
    """Nothing to attach to."""
    assert isinstance(room.run("%gpu attach"), BadRequest)


# ── shape ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_errors_are_one_message_without_our_own_stack(room: Room) -> None:
    """Users see what happened and what to do, not the package's files."""
    room.run("%%gpu --budget x\npass")

    assert "BadRequest: --budget" in room.out + room.err
    assert "Traceback" not in room.out + room.err


def test_help_of_the_cell_magic_lists_every_argument(room: Room) -> None:
    """`%%gpu?` tells all arguments."""
    room.run("%%gpu?")
    told = room.shell.find_cell_magic("gpu").__doc__

    for argument in ("--gpu", "--vram", "--max-price", "--budget", "--hours", "--timeout", "--detach", "--dry-run"):
        assert argument in told
