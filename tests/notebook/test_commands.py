"""`%gpu ...`: each command against a fake broker."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.errors import BadRequest, NoMatchingOffer
from jupyter_gpumarket.models import LeaseState
from jupyter_gpumarket.money import usd
from tests.notebook.conftest import Room


def shown(room: Room) -> str:
    """All tables and texts so far."""
    tables = [one["data"]["text/plain"] for one in room.published if "data" in one]
    return "\n".join([*tables, room.out])


@pytest.mark.parametrize(
    "line",
    [
        "offers",
        "rent",
        "status",
        "status --all",
        "release",
        "release --all",
        "cost",
        "cost --all",
        "logs",
        "config",
        "doctor",
        "budget",
        "extend --hours 3 --budget 2",
        "help",
        "help offers",
        "",
    ],
)
def test_each_command_works_with_a_node(room: Room, line: str) -> None:
    """No command fails where there is a node."""
    room.must_run("%%gpu\npass")
    room.must_run(f"%gpu {line}")


def test_each_command_has_help(room: Room) -> None:
    """`%gpu X --help` and `%gpu help X` tell what X does, for each X of `%gpu help`."""
    magics = room.shell.magics_manager.registry["GpuMagics"]
    for name, command in magics._commands.table.items():
        room.out = ""
        room.must_run(f"%gpu {name} --help")
        assert command.parser.description.split()[0] in room.out, name


def test_an_unknown_command_lists_the_known(room: Room) -> None:
    """A typing error is answered with what there is."""
    error = room.run("%gpu offer")

    assert isinstance(error, BadRequest)
    assert "offers" in str(error)


def test_offers_are_a_table_with_exact_prices(room: Room) -> None:
    """GPU, memory, price, place."""
    room.must_run("%gpu offers --gpu RTX4090")

    assert "RTX4090" in shown(room)
    assert "$0.35" in shown(room)
    assert "<td" in room.published[0]["data"]["text/html"]


def test_offers_without_one_say_why(room: Room) -> None:
    """Nothing fits."""
    room.client.listed = []

    assert isinstance(room.run("%gpu offers"), NoMatchingOffer)


def test_what_a_marketplace_says_is_escaped(room: Room) -> None:
    """A region with markup is shown as text."""
    from tests.notebook.fakes import offer

    room.client.listed = [offer(region="<img src=x onerror=alert(1)>\x1b]0;t\x07")]
    room.must_run("%gpu offers")

    assert "<img" not in room.published[0]["data"]["text/html"]
    assert "\x1b" not in room.published[0]["data"]["text/plain"]


def test_release_waits_for_the_confirmation(room: Room) -> None:
    """Given back means that the marketplace has confirmed it."""
    room.must_run("%%gpu\npass")
    room.must_run("%gpu release")

    assert room.client.views["lease-1"].lease.state is LeaseState.RELEASED
    assert "is given back" in room.out


def test_release_of_several_asks_which(room: Room) -> None:
    """With two nodes, a bare release names them; --all gives both back."""
    room.must_run("%%gpu --name ant\npass")
    room.must_run("%%gpu --new --name bee\npass")

    assert isinstance(room.run("%gpu release"), BadRequest)
    room.must_run("%gpu release --all")
    assert room.client.leases() == []


def test_a_budget_is_set_and_shown(room: Room) -> None:
    """`%gpu budget 5` limits this notebook."""
    room.must_run("%gpu budget 5")

    assert (room.client.limits[0].key, room.client.limits[0].limit_nusd) == ("lab/one.ipynb", usd(5))
    assert "$5.00" in shown(room)


def test_doctor_names_what_is_missing(room: Room) -> None:
    """Broker, what it could not read in its journal, marketplaces with their reasons, clock, settings."""
    room.client.broker_troubles = ("what was wished for crew cannot be read",)
    room.must_run("%gpu doctor")

    assert "marketplace vast" in shown(room)
    assert "no key" in shown(room)
    assert "clock" in shown(room)
    assert "wished for crew cannot be read" in shown(room)


def test_a_nodes_log_is_cleaned(room: Room) -> None:
    """A node's own log cannot set the terminal's title."""
    room.must_run("%%gpu\npass")
    room.must_run("%gpu logs")

    assert "lease.wished" in room.out
    assert "\x1b]" not in room.out


def test_costs_add_up_to_the_nano_dollar(room: Room) -> None:
    """The table's total is the exact sum."""
    room.must_run("%%gpu\npass")
    room.must_run("%gpu cost")

    assert "$0.000291668" in shown(room)


def test_costs_and_log_of_a_node_that_was_given_back_are_still_there(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nobody told the notebook's name: what this kernel used is remembered."""
    monkeypatch.delenv("JUPYTER_GPUMARKET_NOTEBOOK", raising=False)
    room.must_run("%%gpu\npass")
    room.must_run("%gpu release")
    room.must_run("%gpu cost")
    room.must_run("%gpu logs")

    assert "$0.000291668" in shown(room)
    assert "lease.wished" in room.out


def test_doctor_tells_a_disk_that_cannot_be_asked(room: Room) -> None:
    """The fake broker's folder is not there: trouble is a row, not a traceback."""
    room.must_run("%gpu doctor")

    assert "disk" in shown(room)
    assert "/state: No such file or directory" in shown(room)


def test_interrupt_while_waiting_for_a_release_says_that_it_goes_on(room: Room) -> None:
    """Only the waiting ends; the next cell is not told again that this node is gone."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    room.must_run("%%gpu\npass")
    waiting, room.client.lease = room.client.lease, interrupted  # type: ignore[method-assign, assignment]
    error = room.run("%gpu release")
    room.client.lease = waiting  # type: ignore[method-assign]

    assert isinstance(error, KeyboardInterrupt)
    assert "the release goes on" in str(error)
    room.must_run("%%gpu\npass")
    assert "is no more" not in room.out


def test_extend_needs_something_to_extend(room: Room) -> None:
    """Neither hours nor budget: nothing to do."""
    assert isinstance(room.run("%gpu extend"), BadRequest)


def test_amounts_are_not_set_as_formulas() -> None:
    """JupyterLab typesets what stands between two dollar signs of one text; ours never stand in one text."""
    from jupyter_gpumarket.notebook.stage import as_html

    assert as_html("<b> $1 of $2") == "&lt;b&gt; <span>$</span>1 of <span>$</span>2"
