"""The notebook's door for real: an ipykernel, nbclient and papermill, on nodes of a pool on this machine."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from jupyter_gpumarket.client import Client, connect
from jupyter_gpumarket.errors import GpuMarketError
from jupyter_gpumarket.money import format_usd
from tests.notebook.real_kernel import ROOT, RealKernel
from tests.pool_fixtures import RunningPool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab() -> Iterator[RunningPool]:
    """One pool with two hosts for all tests here; whatever was rented is given back."""
    top = Path(tempfile.mkdtemp(prefix="gpn", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        pool.add_host()
        pool.add_host(price="0.50")
        yield pool
        release_everything(pool)
    finally:
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)


def release_everything(pool: RunningPool) -> None:
    with contextlib.suppress(GpuMarketError), connect(pool.folders, start=False) as client:
        for view in client.leases():
            client.release(view.lease.lease_id)
        deadline = time.monotonic() + 60
        while client.leases() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert client.leases() == []
        client.shutdown()


def environment(pool: RunningPool, notebook: str) -> dict[str, str]:
    return {**pool.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": notebook}


@pytest.fixture(scope="module")
def broker(lab: RunningPool) -> Iterator[Client]:
    with connect(lab.folders) as client:
        yield client


@pytest.fixture(scope="module")
def shared_kernel(lab: RunningPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealKernel]:
    kernel = RealKernel(environment(lab, "lab/real.ipynb"), tmp_path_factory.mktemp("kernel")).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket")
        kernel.must_run("%%gpu --gpu none\npass")
        yield kernel
    finally:
        kernel.stop()


@pytest.fixture
def kernel(shared_kernel: RealKernel) -> RealKernel:
    return shared_kernel


WRITE = (
    "import pathlib\npathlib.Path({path!r}).parent.mkdir(exist_ok=True)\npathlib.Path({path!r}).write_text({text!r})"
)


def test_own_modules_are_on_the_node_and_kept_up_to_date(kernel: RealKernel) -> None:
    """A helper beside the notebook is missing without `--sync`, there with it, new after an edit, gone when deleted."""
    for path, text in {
        "beside.py": "import beside_too\ndef f():\n    return 'first'",
        "beside_too.py": "",
        "beside_pkg/__init__.py": "from beside_pkg.part import g",
        "beside_pkg/part.py": "def g():\n    return 'part'",
        "beside_pkg/.env": "KEY=hidden",
        "beside_pkg/deploy.pem": "key",
    }.items():
        kernel.must_run(WRITE.format(path=path, text=text))
    missing = kernel.run("%%gpu\nimport beside")
    assert "`%%gpu --sync` brings your own modules" in "\n".join(missing.reply["traceback"])

    done = kernel.must_run("%%gpu --sync\nimport beside, beside_pkg\nfrom beside import f\nprint(f(), beside_pkg.g())")
    assert done.stdout.splitlines()[-1] == "first part"
    assert "synced beside, beside_pkg, beside_too (4 files" in done.stdout
    assert "beside_pkg/deploy.pem (it may hold a secret)" in done.stdout

    kernel.must_run(WRITE.format(path="beside.py", text="def f():\n    return 'second'"))
    assert kernel.must_run("%%gpu --sync\nprint(f(), beside.f())").stdout.splitlines()[-1] == "second second"

    kernel.must_run("pathlib.Path('beside_too.py').unlink()")
    assert "1 removed" in kernel.must_run("%gpu sync").stdout
    listed = kernel.must_run("%%gpu\nimport os\nprint(sorted(os.listdir(os.path.dirname(beside.__file__))))").stdout
    assert "beside_too.py" not in listed
    assert "beside.py" in listed
    hidden = "import os, beside_pkg\nprint(sorted(os.listdir(beside_pkg.__path__[0])))"
    assert kernel.must_run(f"%%gpu\n{hidden}").stdout == "['__init__.py', '__pycache__', 'part.py']\n"


def test_a_package_that_the_node_lacks_is_installed_by_a_plan(kernel: RealKernel, tmp_path: Path) -> None:
    """What the cell imports and only this side has is planned, then there with what it needs, all or nothing."""
    installed_here(tmp_path, "gpumarket_testonly_tiny", "1.2.3", needs=("gpumarket-testonly-tinier",))
    installed_here(tmp_path, "gpumarket_testonly_tinier", "0.4")
    installed_here(tmp_path, "gpumarket_testonly_torn", "1.0", is_torn=True)
    kernel.must_run(f"import sys\nsys.path.append({str(tmp_path)!r})")
    cell = "import gpumarket_testonly_tiny\nprint(gpumarket_testonly_tiny.NAME)"
    done = kernel.must_run(f"%%gpu --sync --yes\n{cell}")
    plan = "".join(content["data"]["text/plain"] for content in done.of("display_data"))
    assert re.search(r"gpumarket-testonly-tinier +0\.4 .* gpumarket-testonly-tiny needs it", plan)
    assert "installed gpumarket-testonly-tinier 0.4, gpumarket-testonly-tiny 1.2.3" in done.stdout
    assert done.stdout.splitlines()[-1] == "gpumarket_testonly_tiny"
    assert "installed" not in kernel.must_run(f"%%gpu --sync\n{cell}").stdout

    torn = kernel.run("%%gpu --sync --yes\nimport gpumarket_testonly_torn")
    assert torn.status == "error"
    assert "gpumarket-testonly-torn 1.0 could not be brought" in torn.reply["evalue"]
    assert kernel.must_run(f"%%gpu\n{cell}").stdout == "gpumarket_testonly_tiny\n", (
        "what was there before is there still"
    )


def installed_here(site: Path, name: str, version: str, *, needs: tuple[str, ...] = (), is_torn: bool = False) -> None:
    """A package as an installer leaves it in a folder of packages; a torn one has lost its files."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
    (info / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")
    recorded = [] if is_torn else [f"{name}.py", f"{info.name}/METADATA", f"{info.name}/RECORD"]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in recorded))
    (info / "top_level.txt").write_text(name)
    (site / f"{name}.py").write_text(f"NAME = {name!r}\n" + "".join(f"import {n.replace('-', '_')}\n" for n in needs))


def test_output_comes_as_the_same_kinds_of_messages_as_local(kernel: RealKernel) -> None:
    """stdout, stderr and the value are streams and an execute_result; variables stay on the node."""
    done = kernel.must_run("%%gpu\nimport sys\nprint('out'); print('err', file=sys.stderr)\nx = 6 * 7\nx")

    assert done.stdout == "out\n"
    assert done.stderr == "err\n"
    assert done.of("execute_result")[0]["data"] == {"text/plain": "42"}
    assert kernel.must_run("%%gpu\nprint(x + 1)").stdout == "43\n"
    assert kernel.run("x").status == "error"


def test_output_comes_while_the_cell_runs(kernel: RealKernel) -> None:
    """The first line is here before the last one has been printed."""
    sent = kernel.submit("%%gpu\nimport time\nprint('first', flush=True)\ntime.sleep(3)\nprint('last')")
    started = time.monotonic()
    so_far = kernel.until(sent, lambda executed: "first" in executed.stdout)

    assert "last" not in so_far.stdout
    assert time.monotonic() - started < 3
    assert kernel.finish(sent, so_far).stdout == "first\nlast\n"


def test_a_figure_is_shown_and_marked_as_a_strangers(kernel: RealKernel) -> None:
    """A matplotlib figure comes as PNG; its metadata tells where it is from."""
    done = kernel.must_run("%%gpu\n%matplotlib inline\nimport matplotlib.pyplot as plt\n_ = plt.plot([1, 2, 3])")
    figure = next(content for content in done.of("display_data") if "image/png" in content["data"])

    assert figure["metadata"]["gpumarket"]["untrusted"] is True


def test_an_update_reaches_its_display(kernel: RealKernel) -> None:
    """A display handle on the node updates the display here."""
    code = "%%gpu\nfrom IPython.display import display\nh = display('one', display_id=True)\nh.update('two')"
    done = kernel.must_run(code)
    ours = [
        content
        for kind in ("display_data", "update_display_data")
        for content in done.of(kind)
        if "gpumarket" in content["metadata"]
    ]

    assert [content["data"]["text/plain"] for content in ours] == ["'one'", "'two'"]
    assert len({content["transient"]["display_id"] for content in ours}) == 1


def test_hostile_output_is_cleaned_on_its_way(kernel: RealKernel) -> None:
    """Scripts, titles and JavaScript from a real node do not reach the front end."""
    code = (
        "%%gpu\nfrom IPython.display import display, HTML, Javascript\n"
        "display(HTML('<b>hi</b><script>alert(1)</script>'))\ndisplay(Javascript('alert(2)'))\n"
        "print('\\x1b]0;owned\\x07')"
    )
    done = kernel.must_run(code)
    pages = [content["data"].get("text/html", "") for content in done.of("display_data")]

    assert any("<b>hi</b>" in page for page in pages)
    assert not any("<script" in page for page in pages)
    assert not any("application/javascript" in content["data"] for content in done.of("display_data"))
    assert "\x1b]" not in done.stdout


@pytest.mark.parametrize(
    ("code", "name"),
    [("1/0", "ZeroDivisionError"), ("def", "SyntaxError"), ("import sys; sys.exit(3)", "SystemExit")],
)
def test_a_remote_error_fails_the_cell_once(kernel: RealKernel, code: str, name: str) -> None:
    """The reply is an error, one error message carries the remote traceback, and the session lives on."""
    kernel.must_run("%%gpu\nkept = 1")
    done = kernel.run(f"%%gpu\n{code}")

    assert done.status == "error"
    assert len(done.of("error")) == 1
    assert name in "".join(done.of("error")[0]["traceback"])
    assert kernel.must_run("%%gpu\nprint(kept)").stdout == "1\n"


def test_an_interrupt_reaches_the_node(kernel: RealKernel) -> None:
    """The stop button ends the remote cell; its output is kept, and the session lives on."""
    kernel.must_run("%%gpu\nkept = 2")
    sent = kernel.submit("%%gpu\nimport time\nprint('begun', flush=True)\ntime.sleep(60)\nprint('never')")
    so_far = kernel.until(sent, lambda executed: "begun" in executed.stdout)
    kernel.manager.interrupt_kernel()
    started = time.monotonic()
    done = kernel.finish(sent, so_far)

    assert time.monotonic() - started < 20
    assert done.status == "error"
    assert "KeyboardInterrupt" in "".join(done.of("error")[0]["traceback"])
    assert "never" not in done.stdout
    assert kernel.must_run("%%gpu\nprint(kept)").stdout == "2\n"


def test_variables_go_there_and_come_back(kernel: RealKernel) -> None:
    """-i and -o carry arrays and plain values; a type without a codec is named."""
    kernel.must_run("import numpy as np; a = np.arange(5.0); f = {'k': (1, 2)}")
    kernel.must_run("%%gpu -i a,f -o b,n\nb = a * 2\nn = f['k'][1]")
    assert kernel.must_run("print(b.tolist(), n)").stdout == "[0.0, 2.0, 4.0, 6.0, 8.0] 2\n"
    done = kernel.run("%%gpu -o m,n\nclass M: pass\nm = M()\nn = 7")

    assert done.status == "error"
    assert "m:" in done.of("error")[0]["evalue"]
    assert kernel.must_run("print(n)").stdout == "7\n"


def test_the_cost_line_is_what_the_ledger_says(kernel: RealKernel, broker: Client) -> None:
    """The final line's amount is the sum of the run's lines in the ledger, to the nano-dollar."""
    done = kernel.must_run("%%gpu\nimport time; time.sleep(1)")
    runs = {charge.run_id for charge in broker.costs().charges if charge.run_id}
    amounts = {
        format_usd(sum(charge.amount_nusd for charge in broker.costs().charges if charge.run_id == run)) for run in runs
    }

    assert done.run_cost in amounts
    assert done.run_cost != "$0.00"
    assert "so far" not in done.cost_lines[-1].split(" · node so far ")[0]


def test_timeout_ends_a_cell(kernel: RealKernel) -> None:
    """--timeout interrupts on the node and fails the cell."""
    done = kernel.run("%%gpu --timeout 1s\nimport time; time.sleep(30)")

    assert done.status == "error"
    assert "TimeoutError" in "".join(done.of("error")[0]["traceback"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--new --gpu RTX409", "did you mean RTX 4090"),
        ("--new --gpu none --max-price 0.01", "price"),
        ("--new --gpu none --budget 0.0001", "too small"),
        ("-i kpet", "did you mean kept"),
        ("--node nobody", "no node is called"),
    ],
)
def test_bad_input_is_told_and_rents_nothing(kernel: RealKernel, broker: Client, arguments: str, said: str) -> None:
    """Unknown GPU, price above the cap, budget too small, unknown variable and node: each with the way on."""
    kernel.must_run("kept = 1")
    before = len(broker.leases(all=True))
    done = kernel.run(f"%%gpu {arguments}\npass")

    assert done.status == "error"
    assert said in done.reply["evalue"]
    assert len(broker.leases(all=True)) == before


def test_a_hundred_megabytes_of_output_stay_bounded(kernel: RealKernel) -> None:
    """The notebook gets a part, the file the rest, and the reader is told where."""
    done = kernel.must_run("%%gpu\nfor _ in range(100): print(('x' * 999 + '\\n') * 1000, end='')")
    where = re.search(r"the rest goes to (\S+)", done.stderr)

    assert len(done.stdout) <= 20_000_000
    assert where, f"{len(done.stdout)} characters shown; {done.stderr[-800:]}"
    assert len(done.stdout) + Path(where[1]).stat().st_size == 100_000_000


def test_an_interrupt_while_renting_gives_the_node_back(lab: RunningPool, broker: Client, tmp_path: Path) -> None:
    """The stop button during boot: the cell is interrupted and nothing of it is rented any more."""
    kernel = RealKernel(environment(lab, "lab/cancel.ipynb"), tmp_path).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket")
        sent = kernel.submit("%%gpu --gpu none\nprint('never')")
        so_far = kernel.until(sent, lambda executed: any("contract" in line for line in executed.cost_lines))
        kernel.manager.interrupt_kernel()
        done = kernel.finish(sent, so_far)
    finally:
        kernel.stop()

    assert done.reply["ename"] == "Cancelled"
    assert "never" not in done.stdout
    mine = [view.lease for view in broker.leases() if view.lease.request.owner.notebook == "lab/cancel.ipynb"]
    assert mine == []


def test_a_plain_terminal_runs_cells(lab: RunningPool, tmp_path: Path) -> None:
    """IPython without Jupyter: output as it comes, and one cost line."""
    code = (
        "shell = get_ipython()\nshell.run_line_magic('load_ext', 'jupyter_gpumarket')\n"
        "shell.run_cell_magic('gpu', '--gpu none', 'print(6 * 7)')\nshell.run_line_magic('gpu', 'release')"
    )
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--no-banner", "--colors=nocolor", "-c", code],
        env={**environment(lab, "lab/terminal"), "IPYTHONDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "42\n" in done.stdout
    assert done.stdout.count("· done ·") == 1
    assert "is given back" in done.stdout


def test_a_kernel_restart_loses_nothing(lab: RunningPool, tmp_path: Path) -> None:
    """The kernel dies while a remote cell prints: `%gpu attach` shows it from its first line, and brings the result."""
    kernel = RealKernel(environment(lab, "lab/restart.ipynb"), tmp_path).start()
    try:
        kernel.must_run("%load_ext jupyter_gpumarket")
        kernel.must_run("%%gpu --gpu none\npass")
        loop = "for n in range(8):\n    print('line', n, flush=True); time.sleep(0.5)\n"
        code = f"%%gpu -o total\nimport time\n{loop}total = n"
        sent = kernel.submit(code)
        kernel.until(sent, lambda executed: "line 1" in executed.stdout)
        kernel.restart()
        kernel.must_run("%load_ext jupyter_gpumarket")
        done = kernel.must_run("%gpu attach")

        assert done.stdout == "".join(f"line {n}\n" for n in range(8))
        assert kernel.must_run("print(total)").stdout == "7\n"
        assert "$" in done.cost_lines[-1]
        kernel.must_run("%gpu release")
    finally:
        kernel.stop()


CELLS = [
    "%load_ext jupyter_gpumarket",
    "%%gpu --gpu none -o answer\nprint('from the node')\nanswer = 42",
    "print(answer)",
    "%gpu release",
]


def written(*cells: str) -> Any:
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])


@pytest.fixture
def as_notebook(lab: RunningPool, broker: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process's environment, which nbclient and papermill hand on to the kernel."""
    name = f"lab/{time.monotonic_ns()}.ipynb"
    for key, value in environment(lab, name).items():
        monkeypatch.setenv(key, value)
    yield name
    for view in broker.leases():
        if view.lease.request.owner.notebook == name:
            broker.release(view.lease.lease_id)
            lab.wait_until(lambda: not broker.lease(view.lease.lease_id).lease.may_bill, "released")  # noqa: B023


def test_nbclient_runs_a_notebook(as_notebook: str, tmp_path: Path) -> None:
    """No widget, no browser: outputs, result and cost line are in the executed notebook."""
    notebook = written(*CELLS)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = notebook.cells[1].outputs
    texts = "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)

    assert "from the node\n" in texts
    assert "done" in texts
    assert notebook.cells[2].outputs[0]["text"] == "42\n"


def test_nbclient_stops_at_a_remote_error(as_notebook: str, tmp_path: Path) -> None:
    """A failing remote cell fails the notebook, with the remote error's name."""
    notebook = written(CELLS[0], "%%gpu --gpu none\nraise ValueError('no luck')", "print('not reached')")

    with pytest.raises(CellExecutionError, match="no luck"):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert notebook.cells[2].outputs == []


def test_nbclient_is_told_how_to_allow_renting(
    as_notebook: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broker: Client
) -> None:
    """Where nobody can be asked, nothing is rented, and the message tells the way."""
    monkeypatch.setenv("JUPYTER_GPUMARKET_ASK", "true")
    before = len(broker.leases(all=True))
    notebook = written(CELLS[0], "%%gpu --gpu none\npass")

    with pytest.raises(CellExecutionError, match="--yes"):
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert len(broker.leases(all=True)) == before


def test_papermill_runs_a_notebook(as_notebook: str, tmp_path: Path) -> None:
    """papermill executes the same notebook."""
    with_warnings = pytest.importorskip("papermill")
    source, target = tmp_path / "in.ipynb", tmp_path / "out.ipynb"
    notebook = written(*CELLS)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, source)
    with_warnings.execute_notebook(str(source), str(target), progress_bar=False, cwd=str(tmp_path))

    assert "42\n" in nbformat.read(target, as_version=4).cells[2].outputs[0]["text"]
