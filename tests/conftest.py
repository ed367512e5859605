"""Fixtures that all parts share, the order of files among workers, and what a run has left running."""

import os
import time
import uuid
from collections.abc import Generator

import psutil
import pytest

from tests.pool_fixtures import RUNNING, pool, start_pool

__all__ = ["pool", "start_pool"]

# No test asks the internet; what only looks at public lists is tested on stand-ins.
os.environ.setdefault("JUPYTER_GPUMARKET_PUBLIC_LISTS", "0")
# Every process that a test starts inherits it, however far it detaches itself.
RUN_ID = os.environ.setdefault("TESTS_RUN_ID", uuid.uuid4().hex)
END_PATIENCE_S = 10.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers, files with slow tests come first: at the end nobody waits for the last long one."""
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
        items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What fails beside real processes is told with what these have said."""
    report = yield
    if report.failed:
        report.sections += [(f"log {name}", text) for running in RUNNING for name, text in running.logs()]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what tests have left running, by the test that was the last to be begun when it was started."""
    deadline = time.monotonic() + END_PATIENCE_S
    while (left := left_running()) and time.monotonic() < deadline:
        time.sleep(0.2)
    for test, command in left:
        terminalreporter.write_line(f"LEFT RUNNING by {test}: {command}", yellow=True)


def left_running() -> list[tuple[str, str]]:
    """The test and the command of each process of this run that outlived it."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if environment.get("TESTS_RUN_ID") == RUN_ID and "PYTEST_CURRENT_TEST" in environment:
                found.append((environment["PYTEST_CURRENT_TEST"], " ".join(process.cmdline())[:200]))
        except (psutil.Error, OSError):
            continue
    return found
