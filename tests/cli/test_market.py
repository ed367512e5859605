"""The terminal's commands against a real broker without marketplaces, and on a real pool."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder for this module."""
    return tmp_path_factory.mktemp("terminal")


@pytest.fixture(scope="module")
def call(home: Path) -> Iterator[Call]:
    """Run a command; the broker that the first one starts ends with the module."""
    environment = {**os.environ, "JUPYTER_GPUMARKET_HOME": str(home)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "jupyter_gpumarket", *arguments]
        return subprocess.run(
            argv, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )

    yield run
    end = "from jupyter_gpumarket.client import connect\nwith connect(start=False) as client: client.shutdown()"
    subprocess.run([sys.executable, "-c", end], env=environment, capture_output=True, check=False, timeout=60)


def test_without_a_marketplace_each_command_says_what_to_do(call: Call) -> None:
    """A newcomer is told how to get a marketplace, with an exit code that scripts can use."""
    rented = call("rent", "--yes")
    offered = call("offers")
    listed = call("ls", "--json")

    assert (rented.returncode, offered.returncode, listed.returncode) == (2, 3, 0)
    assert "jupyter gpumarket demo" in rented.stderr
    assert "jupyter gpumarket demo" in offered.stderr
    assert json.loads(listed.stdout) == {"leases": [], "orphans": []}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("rent", "--yes", "--gpu", "RTX4900"), 2, "RTX 4090"),
        (("rent", "--yes", "--budget", "abc"), 2, "--budget"),
        (("rent", "--yes", "--max-price", "1e99"), 2, "--max-price"),
        (("stop",), 2, "--all"),
        (("stop", "nobody"), 1, "nobody"),
        (("logs", "nobody"), 1, "nobody"),
        (("report", "--by", "colour"), 2, "marketplace"),
        (("offers", "--sort", "colour"), 2, "price_per_gpu"),
    ],
)
def test_bad_input_is_named(call: Call, arguments: tuple[str, ...], code: int, said: str) -> None:
    """The message names what is wrong and what is accepted; nothing is rented."""
    done = call(*arguments)

    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert said in done.stderr


def test_doctor_tells_an_unused_marketplace_from_a_broken_one(call: Call, home: Path) -> None:
    """What is not set up is off; what is set up wrongly fails."""
    before = {tuple(c.values())[:2] for c in json.loads(call("doctor", "--json").stdout) if "vast" in c["detail"]}
    configuration = home / "config" / "config.toml"
    configuration.write_text("[marketplaces.pool]\nurl = 5\n", "utf-8")
    call_again = call("doctor")

    assert before == {("marketplace", None)}
    assert call_again.returncode == 1
