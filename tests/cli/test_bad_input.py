"""Settings and folders that cannot be, met at the command line: a sentence and an exit code, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER_GPUMARKET_")}
    return subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket", *arguments],
        env={**environment, "JUPYTER_GPUMARKET_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("ask = [", "Invalid value"),
        ('budget = "x"', "budget"),
        ('budget = "-1"', "above zero"),
        ("hours = 0", "hours"),
        ('bugdet = "1"', "bugdet"),
        ('max_price = "1,5"', "max_price"),
    ],
)
def test_wrong_settings_are_named_with_their_file(tmp_path: Path, settings: str, said: str) -> None:
    """What cannot be read, and what cannot be meant, ends with 2 and names the file and the setting."""
    (tmp_path / "config").mkdir(mode=0o700)
    file = tmp_path / "config" / "config.toml"
    file.write_text(settings)
    done = call(tmp_path, "rent", "--gpu", "none", "--yes")
    file.unlink()  # a broker that was started before the fault was seen ends when its settings change

    assert done.returncode == 2
    assert said in done.stderr
    assert str(file) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("ls",), ("doctor",), ("demo", "--folder", "/proc/nothing")])
def test_a_folder_that_cannot_be_made_is_named(arguments: tuple[str, ...]) -> None:
    """No traceback where the state cannot be kept."""
    done = call(Path("/proc/nothing"), *arguments)

    assert done.returncode in (1, 2)
    assert "cannot use the folder /proc/nothing" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_broker_can_be_ended(tmp_path: Path) -> None:
    """`serve --stop` ends the broker that runs, and twice is no error."""
    assert call(tmp_path, "ls").returncode == 0
    pid = json.loads((tmp_path / "state" / "broker.json").read_text())["pid"]
    first = call(tmp_path, "serve", "--stop")
    if psutil.pid_exists(pid):
        psutil.wait_procs([psutil.Process(pid)], timeout=20)
    second = call(tmp_path, "serve", "--stop")

    assert (first.returncode, second.returncode) == (0, 0)
    assert "goes on" in first.stdout
    assert "no broker runs" in second.stdout
