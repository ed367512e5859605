"""What takes a minute, all in the same minute: a link cut, a laptop asleep, a host that dies, a user who never comes
back, and a node with another Dask. Each has a home, a broker and a host of its own.

The minute itself is one fixture; each test looks at what became of one of them.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator

import msgspec
import psutil
import pytest

from jupyter_gpumarket.models import ENDED_STATES, Charge, RunStatus
from tests.faults.sides import Side, Way, closing, lease_processes
from tests.notebook.real_kernel import Executed, RealKernel
from tests.pool_fixtures import RunningPool, pools

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MINUTE_S = 60.0
LINES = 700
PRINTING = f"import time\nfor n in range({LINES}):\n    print('line', n, flush=True); time.sleep(0.1)"
PRINTED = "".join(f"line {n}\n" for n in range(LINES))
GRACE_S = 8.0
DEADLINE_S = 45.0


class Minute(msgspec.Struct):
    """What became of each."""

    cut: Executed = msgspec.field(default_factory=Executed)
    after_cut: Executed = msgspec.field(default_factory=Executed)
    asleep: Executed = msgspec.field(default_factory=Executed)
    after_sleep: Executed = msgspec.field(default_factory=Executed)
    host_died: Executed = msgspec.field(default_factory=Executed)
    host_died_left: list[str] = []
    gap_nusd: int | None = None
    charges: list[Charge] = []
    run_status: RunStatus | None = None
    lost_state: str = ""
    mismatch: str = ""
    idle_ended_s: float = 0.0
    busy_at_grace: bool = False
    busy_ended_s: float = 0.0
    forgotten: dict[str, tuple[str, int]] = {}


def begin(side: Side, code: str, arguments: str = "--gpu none") -> tuple[RealKernel, str]:
    """A notebook that rents and runs; the cell is under way."""
    kernel = side.kernel()
    kernel.must_run("%load_ext jupyter_gpumarket")
    return kernel, kernel.submit(f"%%gpu {arguments}\n{code}")


def has_printed(line: str) -> object:
    return lambda executed: line in executed.stdout


def host_of(pool: RunningPool, rental_id: str) -> int:
    """The number of the host that serves a rental."""
    return next(n for n in range(len(pool.hosts)) if (pool.host_folder(n) / "leases" / rental_id).exists())


def rental_of(side: Side) -> str:
    with side.door() as door:
        (view,) = door.leases()
        return view.lease.rental_id


def printed(executed: Executed) -> str:
    """What the node printed; our own line about renting stands before it."""
    said, _, rest = executed.stdout.partition("\n")
    assert said.startswith("rent CPU")
    return rest


class Forgotten:
    """A user who rents and whose whole side dies; seen from the host."""

    def __init__(self, pool: RunningPool, side: Side) -> None:
        self.side = side
        self.rental_id = rental_of(side)
        self.folder = pool.host_folder(host_of(pool, self.rental_id))
        self.killed_s = 0.0

    def kill(self) -> None:
        for process in self.side.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.killed_s = time.monotonic()

    @property
    def is_alive(self) -> bool:
        return bool(lease_processes(self.folder))

    def wait_gone(self, pool: RunningPool) -> float:
        """Seconds from the kill until nothing of the lease runs."""
        pool.wait_until(lambda: not self.is_alive, f"the node of {self.side.name} has ended", 80)
        return time.monotonic() - self.killed_s


@pytest.fixture(scope="module")
def minute() -> Iterator[Minute]:
    """The whole of it."""
    way = Way()
    with pools() as start, contextlib.ExitStack() as stack:
        stack.callback(way.close)
        pool = start(hosts=0)
        way.add_host(pool, "0.10")
        for _ in range(5):
            pool.add_host(wait=False)
        pool.wait_until(lambda: len(pool.offer_ids()) == 6, "all hosts are listed")
        sides = {name: Side(pool, name) for name in ("cut", "asleep", "died", "other")}
        grace = {"JUPYTER_GPUMARKET_GRACE_S": str(GRACE_S).removesuffix(".0")}
        sides |= {name: Side(pool, name, **grace) for name in ("idle", "busy")}
        stack.enter_context(closing(*sides.values()))
        yield spend(pool, way, **sides)


def spend(
    pool: RunningPool, way: Way, *, cut: Side, asleep: Side, died: Side, idle: Side, busy: Side, other: Side
) -> Minute:
    """Begin all, spoil all, wait, mend, and look."""
    seen = Minute()
    # First the one that has to have the host beyond the way: it is the cheapest.
    cut_kernel, cut_cell = begin(cut, PRINTING)
    seen.cut = cut_kernel.until(cut_cell, has_printed("line 2\n"))
    asleep_kernel, asleep_cell = begin(asleep, PRINTING)
    died_kernel, died_cell = begin(died, "import time\nprint('on', flush=True)\ntime.sleep(1000)")
    idle_kernel, idle_cell = begin(idle, "pass")
    busy_kernel, busy_cell = begin(
        busy, "import time\nprint('on', flush=True)\ntime.sleep(1000)", f"--gpu none --hours {DEADLINE_S / 3600:.6f}"
    )
    seen.asleep = asleep_kernel.until(asleep_cell, has_printed("line 2\n"))
    seen.host_died = died_kernel.until(died_cell, has_printed("on"))
    idle_kernel.finish(idle_cell)
    busy_kernel.until(busy_cell, has_printed("on"))
    forgotten = [Forgotten(pool, idle), Forgotten(pool, busy)]
    dead = host_of(pool, rental_of(died))

    way.cut()
    asleep.signal(signal.SIGSTOP)
    began_s = time.monotonic()
    pool.hosts[dead].kill()
    for one in forgotten:
        one.kill()
    mismatching = start_with_another_dask(other)
    seen.idle_ended_s = forgotten[0].wait_gone(pool)
    pool.wait_until(lambda: time.monotonic() - forgotten[1].killed_s > GRACE_S + 12, "the grace is over", 60)
    seen.busy_at_grace = forgotten[1].is_alive
    seen.busy_ended_s = forgotten[1].wait_gone(pool)
    seen.host_died_left = [str(process) for process in lease_processes(pool.host_folder(dead))]
    pool.wait_until(lambda: time.monotonic() - began_s > MINUTE_S, "the minute is over", MINUTE_S + 5)

    way.mend()
    asleep.signal(signal.SIGCONT)
    seen.cut = cut_kernel.finish(cut_cell, seen.cut)
    seen.asleep = asleep_kernel.finish(asleep_cell, seen.asleep)
    seen.after_cut = cut_kernel.run("%%gpu\nprint(n)")
    seen.after_sleep = asleep_kernel.run("%%gpu\nprint(n)")
    seen.host_died = died_kernel.finish(died_cell, seen.host_died)
    look_at_the_books(pool, died, seen)
    seen.forgotten = {one.side.name: books_of_a_forgotten_one(pool, one) for one in forgotten}
    seen.mismatch, _ = mismatching.communicate(timeout=150)
    return seen


def start_with_another_dask(side: Side) -> subprocess.Popen[str]:
    """A terminal whose Dask says it is of a year to come: no node can have it, and no index either."""
    there = side.work / "dask-2031.1.0.dist-info"
    there.mkdir()
    (there / "METADATA").write_text("Metadata-Version: 2.1\nName: dask\nVersion: 2031.1.0\n")
    side.environment["PYTHONPATH"] = f"{side.work}:{side.environment['PYTHONPATH']}"
    return side.ipython("shell.run_cell_magic('gpu', '--gpu none', 'print(42)')")


def look_at_the_books(pool: RunningPool, side: Side, seen: Minute) -> None:
    with side.door() as door:
        (view,) = door.leases(all=True)
        lease_id = view.lease.lease_id

        def compared() -> bool:
            return any(line.kind == "reconciled" for line in door.story(lease_id))

        pool.wait_until(compared, "the bill of the dead host is compared", 90)
        seen.lost_state = door.lease(lease_id).lease.state.value
        seen.charges = door.costs().charges
        seen.gap_nusd = door.reconcile()[0].gap_nusd
        run_ids = {charge.run_id for charge in seen.charges if charge.run_id}
        seen.run_status = door.run_cost(run_ids.pop()).run.status


def books_of_a_forgotten_one(pool: RunningPool, one: Forgotten) -> tuple[str, int]:
    """The user comes back after all: what the lease is, and by how much the bills differ."""
    with one.side.door() as door:
        (view,) = door.leases(all=True)
        lease_id = view.lease.lease_id
        pool.wait_until(lambda: door.lease(lease_id).lease.state in ENDED_STATES, "its end is known", 60)
        pool.wait_until(lambda: any(x.kind == "reconciled" for x in door.story(lease_id)), "it is compared", 60)
        return door.lease(lease_id).lease.state.value, door.reconcile()[0].gap_nusd


def test_a_link_cut_for_a_minute_loses_and_doubles_no_line(minute: Minute) -> None:
    """60 s of black hole during a printing cell: each line once, in order, and the cell says meanwhile what is up."""
    assert printed(minute.cut) == PRINTED
    assert minute.cut.status == "ok"
    assert any("link lost" in line and "nothing is lost" in line for line in minute.cut.cost_lines)
    assert minute.after_cut.stdout == f"{LINES - 1}\n"


def test_a_user_side_suspended_for_a_minute_loses_and_doubles_no_line(minute: Minute) -> None:
    """Kernel, broker and cluster process stopped for 60 s, as a laptop asleep: each line once, in order."""
    assert printed(minute.asleep) == PRINTED
    assert minute.asleep.status == "ok"
    assert minute.after_sleep.stdout == f"{LINES - 1}\n"


def test_a_host_killed_during_a_cell_is_a_lost_run_and_a_true_bill(minute: Minute) -> None:
    """The cell fails with what to do, the run is LOST, the lease ends, and our books are the pool's."""
    assert printed(minute.host_died) == "on\n"
    assert minute.host_died.status == "error"
    assert "is gone" in minute.host_died.reply["evalue"]
    assert "run the cell again" in minute.host_died.reply["evalue"]
    assert minute.run_status is RunStatus.LOST
    assert minute.lost_state in {state.value for state in ENDED_STATES}
    assert minute.charges
    assert all(charge.final for charge in minute.charges)
    assert minute.gap_nusd == 0
    assert minute.host_died_left == []


def test_a_forgotten_idle_node_ends_itself_after_the_grace(minute: Minute) -> None:
    """Kernel, broker and cluster process killed: nobody speaks to the node, and it ends; the books come out even."""
    assert GRACE_S - 1 < minute.idle_ended_s < GRACE_S + 30
    assert minute.forgotten["idle"][1] == 0


def test_a_forgotten_busy_node_goes_on_to_its_deadline(minute: Minute) -> None:
    """A cell that runs is not ended by silence; the agreed end holds all the same."""
    assert minute.busy_at_grace
    assert minute.busy_ended_s < DEADLINE_S + 15
    assert minute.forgotten["busy"][1] == 0


def test_another_dask_on_the_node_is_told_with_the_difference_and_the_fix(minute: Minute) -> None:
    """No cell runs; the message names both versions and a command, and is not cut off."""
    assert "dask" in minute.mismatch
    assert "2031.1.0 here" in minute.mismatch
    assert "pip install dask==2031.1.0" in minute.mismatch
    assert "42" not in minute.mismatch.split()
    assert "Traceback" not in minute.mismatch
