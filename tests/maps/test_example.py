"""Example 02, executed as a user would."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from jupyter_gpumarket.client import connect
from jupyter_gpumarket.errors import GpuMarketError
from tests.notebook.real_kernel import ROOT
from tests.pool_fixtures import RunningPool

EXAMPLE = ROOT / "examples" / "02-search-over-three-nodes.ipynb"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_search_over_three_nodes_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three nodes, the data once on each, a verified search, costs by item, and nothing rented afterwards."""
    top = Path(tempfile.mkdtemp(prefix="gpx", dir="/tmp"))
    pool = RunningPool(top)
    try:
        pool.start_registry()
        for _ in range(3):
            pool.add_host()
        environment = {**pool.environment, "PYTHONPATH": str(ROOT), "JUPYTER_GPUMARKET_NOTEBOOK": "search.ipynb"}
        for name, text in environment.items():
            monkeypatch.setenv(name, text)
        notebook = nbformat.read(EXAMPLE, as_version=4)
        NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(top)}}).execute()
        shown = "".join(
            output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
            for cell in notebook.cells
            for output in cell.get("outputs", [])
        )
        assert "12/12 items · 3 nodes" in shown
        assert "verified on another machine: 2 the same, 0 different" in shown
        assert "best: {'units'" in shown
        assert "is given back; it cost $" in shown
        with connect(pool.folders, start=False) as client:
            assert client.leases() == []
    finally:
        with contextlib.suppress(GpuMarketError), connect(pool.folders, start=False) as client:
            client.shutdown()
        pool.stop()
        shutil.rmtree(top, ignore_errors=True)
