"""Help is quick, complete and usable by scripts."""

from __future__ import annotations

import subprocess
import sys

import pytest

COMMANDS = ("demo", "offers", "rent", "ls", "logs", "stop", "report", "doctor", "serve", "pool", "host")
HEAVY = {"polars", "dask", "distributed", "asyncssh", "tornado", "sqlalchemy", "httpx", "numpy", "pyarrow", "IPython"}


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jupyter_gpumarket", *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_help_names_every_command() -> None:
    """`jupyter gpumarket --help` lists all of them."""
    shown = call("--help")

    assert shown.returncode == 0
    assert [name for name in COMMANDS if f"    {name} " not in shown.stdout] == []


def test_help_loads_nothing_heavy() -> None:
    """Help is quick because only argparse is loaded."""
    code = (
        "import sys; from jupyter_gpumarket.cli.parser import build_parser; build_parser().format_help(); "
        "print(*{m.split('.')[0] for m in sys.modules})"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert HEAVY & set(loaded.stdout.split()) == set()


@pytest.mark.parametrize("arguments", [("nonsense",), ("ls", "--nonsense"), ()])
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    """Scripts can tell a typing error from a failure."""
    assert call(*arguments).returncode == 2


def test_version_is_told() -> None:
    """--version prints the package's version."""
    from jupyter_gpumarket import __version__

    assert call("--version").stdout.strip() == __version__
