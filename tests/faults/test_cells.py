"""Cells that misbehave, and notebooks that want the same thing, on a real pool and in real kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.config import folders
from jupyter_gpumarket.money import usd
from tests.broker.running import end_processes
from tests.faults.sides import Side, closing
from tests.notebook.real_kernel import Executed, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def told(done: Executed) -> str:
    """What the reader sees of a cell that failed."""
    assert done.status == "error", done
    errors = done.of("error")
    assert len(errors) == 1
    return "\n".join([*errors[0]["traceback"], done.stderr])


def test_a_forking_cell_ends_once(kernel: RealKernel) -> None:
    """A child that runs on behind the cell neither holds it up nor repeats its output, and the next cell runs."""
    child = "    time.sleep(60)\n    os._exit(0)\n"
    code = f"import os, time\nprint('before', flush=True)\nif not os.fork():\n{child}print('parent')"
    started = time.monotonic()
    done = kernel.must_run(f"%%gpu\n{code}")

    assert done.stdout == "before\nparent\n"
    assert time.monotonic() - started < 30
    assert kernel.must_run("%%gpu\nprint(kept)").stdout == "1\n"


@pytest.mark.parametrize("how", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_a_cell_that_kills_its_session_says_what_is_gone(kernel: RealKernel, how: str) -> None:
    """As the OOM killer does it: an error that names the signal and tells that the variables went with it."""
    kernel.must_run("%%gpu\nkept = 1")
    done = kernel.run(f"%%gpu\nimport os, signal, time\nprint('on', flush=True)\ntime.sleep(0.5)\n{how}")

    assert done.stdout == "on\n"
    assert "variables" in told(done)
    assert "memory" in told(done) if "KILL" in how else "exit code 3" in told(done)
    assert "NameError" in told(kernel.run("%%gpu\nkept"))
    assert kernel.must_run("%%gpu\nkept = 1\nprint('again')").stdout == "again\n"


def test_a_cell_beyond_its_memory_limit_is_an_error_and_the_session_lives(kernel: RealKernel) -> None:
    """Where the system refuses memory instead of killing: MemoryError in the notebook, variables kept."""
    code = (
        "import resource\nbefore = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, before[1]))\n"
        "try:\n    block = bytearray(64 << 30)\nfinally:\n    resource.setrlimit(resource.RLIMIT_AS, before)"
    )

    assert "MemoryError" in told(kernel.run(f"%%gpu\n{code}"))
    assert kernel.must_run("%%gpu\nprint(kept)").stdout == "1\n"


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A control group of 300 MiB, where this machine lets us make one."""
    for root, limit in (
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),
        (Path("/sys/fs/cgroup"), "memory.max"),
    ):
        group = root / f"faults-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit).write_text(str(300 << 20))
        except OSError:
            group.rmdir()
            continue
        yield group
        for pid in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(pid)
        group.rmdir()
        return
    pytest.skip("making a memory control group is not allowed here")


def test_the_real_oom_killer_ends_the_session_alone(kernel: RealKernel, memory_group: Path) -> None:
    """A kernel whose control group runs out of memory is killed by the system; the node and its agent live on."""
    pid = kernel.must_run("%%gpu --session big\nimport os\nprint(os.getpid())").stdout.strip()
    (memory_group / "cgroup.procs").write_text(pid)
    done = kernel.run("%%gpu --session big\nblocks = []\nfor _ in range(100): blocks.append(b'x' * (16 << 20))")

    assert "memory" in told(done)
    assert kernel.must_run("%%gpu\nprint(kept)").stdout == "1\n"
    assert kernel.must_run("%%gpu --session big\nprint('new')").stdout == "new\n"


def test_a_result_that_is_a_pickle_is_refused_and_never_runs(kernel: RealKernel, tmp_path: Path) -> None:
    """A cell that makes its node send a pickle, as itself or as another codec: an error, and no code runs here."""
    marker = tmp_path / "ran"
    code = (
        "import os, pickle\nfrom jupyter_gpumarket import codecs\n"
        f"class Evil:\n    def __reduce__(self): return os.mkdir, ({str(marker)!r},)\n"
        "honest, data = codecs.encode, pickle.dumps(Evil())\n"
        "codecs.encode = lambda value: codecs.Encoded(codec=value, data=data)\n"
        "a, b = 'cloudpickle', 'npy'"
    )
    done = kernel.run(f"%%gpu -o a,b\n{code}")
    assert "could run code here" in told(done), told(done)
    kernel.must_run("%%gpu\ncodecs.encode = honest")

    assert "a:" in told(done)
    assert "b:" in told(done)
    assert not marker.exists()
    assert kernel.run("a").status == "error"


def test_a_script_reaches_the_page_only_from_a_trusted_node(kernel: RealKernel) -> None:
    """Cleaned without --trust; with it the very same cell shows its script."""
    code = "from IPython.display import HTML, display\ndisplay(HTML('<b>hi</b><script>alert(1)</script>'))"
    pages = {
        flag: "".join(
            c["data"].get("text/html", "") for c in kernel.must_run(f"%%gpu {flag}\n{code}").of("display_data")
        )
        for flag in ("", "--trust")
    }

    assert "<b>hi</b>" in pages[""]
    assert "<script" not in pages[""]
    assert "<script>alert(1)</script>" in pages["--trust"]


def test_two_notebooks_at_once_get_two_machines_and_the_third_an_answer(kernel: RealKernel, ada: Side) -> None:
    """Both want the cheapest offer in the same moment: one has it, nobody has it twice, and who gets none is told."""
    kernel.must_run("%gpu release")
    others = [ada.kernel(JUPYTER_GPUMARKET_NOTEBOOK=f"other-{n}.ipynb") for n in range(2)]
    for other in others:
        other.must_run("%load_ext jupyter_gpumarket")
    sent = [other.submit("%%gpu --gpu none\nprint('here')") for other in others]
    done = [other.finish(message_id) for other, message_id in zip(others, sent, strict=True)]

    assert [one.stdout.splitlines()[-1] for one in done] == ["here", "here"]
    with ada.door() as door:
        open_leases = [view.lease for view in door.leases()]
    assert len({lease.offer.machine_id for lease in open_leases if lease.offer}) == len(open_leases) == 2
    assert "no marketplace offers a" in told(kernel.run("%%gpu --gpu none\npass"))
    for other in others:
        other.must_run("%gpu release")


def test_no_marketplace_reachable_is_told_with_the_way_on(lab: RunningPool) -> None:
    """Nobody answers at the registry's address: the cell fails in seconds, names it, and nothing is rented."""
    side = Side(lab, "far")
    settings = side.folders.settings_file
    settings.write_text(settings.read_text().replace(lab.url, "http://127.0.0.1:9"))
    with closing(side):
        said, _ = side.ipython("shell.run_cell_magic('gpu', '--gpu none', 'pass')").communicate(timeout=60)
        with side.door() as door:
            assert door.leases(all=True) == []

    assert "no marketplace answers (pool: " in said
    assert "`%gpu doctor`" in said
    assert "Traceback" not in said


def test_nothing_of_a_user_is_left_after_release_and_shutdown(lab: RunningPool) -> None:
    """After a cell and `%gpu release`: no key, no open lease, no process on the node; a second release says so."""
    side = Side(lab, "tidy")
    with closing(side):
        terminal = side.ipython(
            "shell.run_cell_magic('gpu', '--gpu none', 'print(6 * 7)')",
            "shell.run_line_magic('gpu', 'release')",
            "shell.run_line_magic('gpu', 'release')",
        )
        said, _ = terminal.communicate(timeout=90)
        assert "42\n" in said, said
        assert "this notebook has no node to give back" in said
        assert list(side.folders.keys.iterdir()) == []
        with side.door() as door:
            assert door.leases() == []
            spent = sum(charge.amount_nusd for charge in door.costs().charges)
            assert 0 < spent < usd("0.01")


def test_the_help_of_both_magics_is_there_without_a_pool(tmp_path: Path) -> None:
    """`%gpu help`, `%%gpu?` and `%gpu doctor` need no marketplace, and doctor names what is missing."""
    code = "%load_ext jupyter_gpumarket\n%gpu help\nget_ipython().run_line_magic('pinfo', '%%gpu')\n%gpu doctor\n"
    script = tmp_path / "help.ipy"
    script.write_text(code)
    home = tmp_path / "home"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", str(script)],
            env={**os.environ, "JUPYTER_GPUMARKET_HOME": str(home), "IPYTHONDIR": str(tmp_path / "i")},
            cwd=Path(__file__).parent.parent.parent,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        # The doctor asks a broker, which would stay for ten minutes.
        end_processes(folders({"JUPYTER_GPUMARKET_HOME": str(home)}))

    assert done.returncode == 0, done.stderr
    assert "%gpu release" in done.stdout
    assert "--max-price" in done.stdout
    assert "jupyter gpumarket demo" in done.stdout
