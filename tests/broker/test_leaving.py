"""Nodes that will end soon, as the broker counts them: pure decisions, by tables."""

from __future__ import annotations

import msgspec
import pytest

from jupyter_gpumarket.api import DaskView, DaskWorkerView
from jupyter_gpumarket.broker import leaving
from jupyter_gpumarket.models import CellRun, Notice, RunStatus
from jupyter_gpumarket.money import usd
from tests.broker.fakes import lease

T0 = 1_700_000_000_000
MINUTE = 60_000
SOON = Notice(ends_ms=T0 + 10 * MINUTE, reason="reclaimed", source="marketplace")


def dask(state: str, head: str = "other") -> DaskView:
    worker = DaskWorkerView(name="w", lease_id="lease-1", state=state)  # type: ignore[arg-type]
    return DaskView(state="running", head=head, workers=(worker,))


def part(status: RunStatus, session: str = "map") -> CellRun:
    return CellRun(run_id="r", lease_id="lease-1", session=session, status=status)


@pytest.mark.parametrize(
    ("source", "left_ms", "counts"),
    [
        ("marketplace", 10 * MINUTE, True),
        ("marketplace", 24 * 60 * MINUTE, False),
        ("node", 1_000, True),
        ("deadline", 1_000, False),
    ],
)
def test_a_node_is_replaced_only_when_somebody_else_ends_it_soon(source: str, left_ms: int, counts: bool) -> None:
    """Not a day before, and not when its own hours or money are over: that was agreed."""
    notice = Notice(ends_ms=T0 + left_ms, reason="", source=source)  # type: ignore[arg-type]

    assert leaving.is_leaving(lease(notice=notice), T0) is counts
    assert leaving.is_leaving(lease(), T0) is False


@pytest.mark.parametrize(
    ("what", "view", "runs", "goes"),
    [
        ("nothing on it", None, (), True),
        ("handed over", dask("retired"), (part(RunStatus.OK),), True),
        ("hands over", dask("retiring"), (), False),
        ("a map's part runs", dask("retired"), (part(RunStatus.RUNNING),), False),
        ("a session's variables", dask("retired"), (part(RunStatus.OK, "main"),), False),
        ("the head", dask("retired", head="lease-1"), (), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_goes_once_it_holds_nothing(what: str, view: DaskView | None, runs: tuple[CellRun, ...], goes: bool) -> None:
    """Early only without loss; after the announced end and some slack in any case."""
    one = lease(notice=SOON)

    assert leaving.may_go(one, view, runs, T0) is goes, what
    assert leaving.may_go(one, view, runs, SOON.ends_ms + leaving.SLACK_MS) is True


def test_less_is_set_aside_for_a_node_whose_end_is_announced() -> None:
    """Its bill up to the announced end and some slack, never more than its budget: the rest pays for another node."""
    one = lease(notice=SOON, deadline_ms=T0 + 60 * MINUTE, ready_ms=T0)
    late = msgspec.structs.replace(one, deadline_ms=T0 + 5 * MINUTE)

    assert leaving.still_costs_nusd(one) == usd("3.60") * 11 // 60
    assert leaving.still_costs_nusd(late) == one.request.budget_nusd


def test_people_are_told_when_why_and_what_to_do() -> None:
    """With the time that is left, and another way out when it is the own deadline that comes."""
    own = msgspec.structs.replace(SOON, source="deadline", reason="the budget is used up")

    assert "in 10 min" in leaving.words(lease(notice=SOON), T0)
    assert "reclaimed; fetch what you need" in leaving.words(lease(notice=SOON), T0)
    assert "`%gpu extend` gives it more" in leaving.words(lease(notice=own), T0)
    assert leaving.words(lease(), T0) == ""
