"""The estimate before a fan-out: pure, by a table and by generated work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.notebook.fit import Line, Work, bytes_in, estimate, tasks_in

USD = 10**9
HOME = Line(name="your line", up_mbps=40, down_mbps=400, is_measured=True)
FAST = Line(name="a", up_mbps=10_000, down_mbps=10_000)


def test_work_that_moves_little_is_not_warned_of() -> None:
    """An hour of computing on four workers with a little data: time and cost as by hand, and no warning."""
    work = Work(tasks=400, seconds_each=36, moved_bytes=10**6)
    found = estimate(work, [HOME, FAST, FAST], workers=4, rate_nusd_hour=2 * USD, is_relayed=True)

    assert found.compute_s.likely == 3600
    assert found.warnings == ()
    assert 2 * USD <= found.cost_likely_nusd < 2.01 * USD
    assert found.network_share < 0.01
    assert "about 1 h" in found.sentence()


def test_a_shuffle_through_a_home_line_is_warned_of() -> None:
    """10 GB between nodes through a 40 Mbit/s upstream takes 2000 s: told plainly, with the line that limits it."""
    work = Work(tasks=100, seconds_each=1, moved_bytes=10 * 10**9)
    found = estimate(work, [HOME, FAST, FAST], workers=4, rate_nusd_hour=USD, is_relayed=True)

    assert found.network_s.likely == pytest.approx(2000)
    assert found.slowest == "your line"
    assert "bound by the network" in found.warnings[0]
    assert "your line" in found.warnings[0]


def test_nodes_that_reach_each_other_are_limited_by_their_own_lines() -> None:
    """Without the relay the user's line does not count."""
    work = Work(tasks=100, seconds_each=1, moved_bytes=10 * 10**9)
    found = estimate(work, [FAST, FAST], workers=4, rate_nusd_hour=USD, is_relayed=False)

    assert found.network_s.likely == pytest.approx(4)
    assert found.warnings == ()


def test_what_is_not_known_widens_the_estimate() -> None:
    """An unknown line is assumed to be slow, said so, and makes the span wider than a measured one."""
    work = Work(tasks=10, seconds_each=1, moved_bytes=10**9)
    unknown = estimate(work, [Line(name="x")], workers=2, rate_nusd_hour=USD, is_relayed=False)
    measured = Line(name="x", up_mbps=100, down_mbps=100, is_measured=True)
    known = estimate(work, [measured], workers=2, rate_nusd_hour=USD, is_relayed=False)

    assert "nothing is known" in unknown.warnings[-1]
    assert unknown.network_s.high / unknown.network_s.low > known.network_s.high / known.network_s.low


LINES = st.builds(
    Line, name=st.just("x"), up_mbps=st.floats(0, 1e5), down_mbps=st.floats(0, 1e5), is_measured=st.booleans()
)
WORKS = st.builds(
    Work,
    tasks=st.integers(0, 10**6),
    seconds_each=st.floats(0, 1e4),
    spread=st.floats(1, 10),
    moved_bytes=st.integers(0, 10**14),
    user_bytes=st.integers(0, 10**14),
)


@given(WORKS, st.lists(LINES, min_size=1, max_size=6), st.integers(1, 1000), st.integers(0, 100 * USD), st.booleans())
def test_the_likely_lies_between_the_limits(
    work: Work, lines: list[Line], workers: int, rate: int, is_relayed: bool
) -> None:
    """Whatever the work: low ≤ likely ≤ high in time and money, and a share between nothing and all."""
    found = estimate(work, lines, workers=workers, rate_nusd_hour=rate, is_relayed=is_relayed)

    for span in (found.compute_s, found.network_s, found.total_s):
        assert 0 <= span.low <= span.likely <= span.high
    assert 0 <= found.cost_low_nusd <= found.cost_likely_nusd <= found.cost_high_nusd
    assert 0 <= found.network_share <= 1


@given(WORKS, st.integers(0, 10**12))
def test_more_bytes_never_take_less(work: Work, more: int) -> None:
    """Moving more takes at least as long and costs at least as much."""
    import msgspec

    larger = msgspec.structs.replace(work, moved_bytes=work.moved_bytes + more)
    before, after = (estimate(w, [HOME, FAST], workers=3, rate_nusd_hour=USD, is_relayed=True) for w in (work, larger))

    assert after.total_s.likely >= before.total_s.likely
    assert after.cost_high_nusd >= before.cost_high_nusd


def test_a_collection_tells_tasks_and_bytes() -> None:
    """A Dask array tells both; what is no collection counts as one task without bytes."""
    import dask.array as da

    array = da.ones((1000, 1000), chunks=(100, 1000))

    assert tasks_in(array) >= 10
    assert bytes_in(array) == 8_000_000
    assert (tasks_in(3), bytes_in(object())) == (1, 0)


def test_without_a_worker_there_is_no_estimate() -> None:
    """It says what it needs."""
    with pytest.raises(ValueError, match="at least one worker"):
        estimate(Work(tasks=1, seconds_each=1), [FAST], workers=0, rate_nusd_hour=0, is_relayed=False)
