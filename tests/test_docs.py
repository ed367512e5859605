"""The documents tell what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jupyter_gpumarket import errors

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link of each page names a file that exists."""
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))

    assert [link for link in links if not (page.parent / link).exists()] == []


def test_readme_stays_short() -> None:
    """A newcomer reads it whole: at most 150 lines."""
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150


def test_every_error_is_in_the_tree() -> None:
    """The tree at the top of errors.py names every class, and nothing else."""
    drawn = set(re.findall(r"[├└]─ (\w+)", errors.__doc__ or "")) | {"GpuMarketError"}
    there = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}

    assert drawn == there


def test_every_magic_option_is_documented() -> None:
    """docs/magics.md names each option of %%gpu."""
    from jupyter_gpumarket.notebook import options

    source = Path(options.__file__).read_text("utf-8")
    told = (ROOT / "docs" / "magics.md").read_text("utf-8")
    missing = [option for option in re.findall(r'"(--[a-z][a-z-]+)"', source) if f"`{option}" not in told]

    assert missing == []


def test_every_command_is_documented() -> None:
    """docs/cli.md names each command of the terminal."""
    from jupyter_gpumarket.cli.parser import build_parser

    commands = re.findall(r"^    (\w+) ", build_parser().format_help(), flags=re.MULTILINE)
    told = (ROOT / "docs" / "cli.md").read_text("utf-8")

    assert len(commands) >= 11
    assert [name for name in commands if f"jupyter gpumarket {name}" not in told] == []
