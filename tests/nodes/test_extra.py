"""Packages for the user's own code, on the node: the steps as they run there, in a home folder of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.nodes.extra import failure
from jupyter_gpumarket.nodes.onnode import steps

ORDER: dict[str, Any] = {"lease_id": "lease-1", "python": sys.executable, "limit_s": 120}


@pytest.fixture
def lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lease's folder of a user with this home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return Path(steps.lease_folder(ORDER))


def distribution(name: str, version: str, files: dict[str, str]) -> dict[str, str]:
    """What an installer makes of a package."""
    info = f"{name}-{version}.dist-info"
    recorded = "".join(f"{path},,\n" for path in [*files, f"{info}/METADATA", f"{info}/RECORD"])
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    return {**files, f"{info}/METADATA": metadata, f"{info}/RECORD": recorded}


def bring(lease: Path, pins: list[str], *packages: dict[str, str]) -> None:
    """As it comes over the link."""
    archive = lease / "packages.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for files in packages:
            for path, text in files.items():
                packed.writestr(path, text)
    steps.packages({**ORDER, "pins": pins, "sha256": hashlib.sha256(archive.read_bytes()).hexdigest()})


def there(lease: Path) -> dict[str, str]:
    place = lease / "packages" / "current"
    return {path.relative_to(place).as_posix(): path.read_text() for path in place.rglob("*.py")}


def found(names: list[str]) -> dict[str, str]:
    packages: dict[str, str] = steps.versions({**ORDER, "names": names})["packages"]
    return packages


def test_an_installer_finds_nothing_of_one_that_failed_before_it(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first one left half done is neither mixed with what the next one brings nor taken for it."""
    fake = "#!/bin/sh\nwhile [ $1 != --target ]; do shift; done; mkdir -p $2/{made} && exit {code}\n"
    for name, made, code in (("uv", "half", 1), ("python", "whole", 0)):
        (tmp_path / name).write_text(fake.format(made=made, code=code))
        (tmp_path / name).chmod(0o700)
    monkeypatch.setattr(steps, "find_tool", lambda _: str(tmp_path / "uv"))
    target = tmp_path / "target"
    target.mkdir(mode=0o700)

    steps.install_into(str(target), {**ORDER, "python": str(tmp_path / "python"), "pins": ["tiny==1"]}, str(lease))

    assert [path.name for path in target.iterdir()] == ["whole"]
    assert target.stat().st_mode & 0o077 == 0


def test_packages_add_up_and_new_versions_replace_old_ones(lease: Path) -> None:
    """A later package stays beside an earlier one, also in a shared namespace; a new version leaves nothing behind."""
    bring(lease, ["tiny==1"], distribution("tiny", "1", {"space/tiny.py": "1", "tiny_old.py": "1"}))
    bring(lease, ["other==2"], distribution("other", "2", {"space/other.py": "2"}))
    bring(lease, ["tiny==3"], distribution("tiny", "3", {"space/tiny.py": "3"}))
    assert there(lease) == {"space/tiny.py": "3", "space/other.py": "2"}
    assert found(["tiny", "other", "msgspec", "nowhere"]).keys() == {"tiny", "other", "msgspec"}
    assert found(["tiny"]) == {"tiny": "3"}


def test_what_is_not_whole_changes_nothing(lease: Path) -> None:
    """One of two packages missing, or an archive that was cut: what was there before is there still."""
    bring(lease, ["tiny==1"], distribution("tiny", "1", {"tiny.py": "1"}))
    with pytest.raises(steps.Trouble, match="gone==1"):
        bring(lease, ["tiny==2", "gone==1"], distribution("tiny", "2", {"tiny.py": "2"}))
    (lease / "packages.zip").write_bytes(b"cut")
    with pytest.raises(steps.Trouble, match="did not arrive whole"):
        steps.packages({**ORDER, "pins": ["tiny==2"], "sha256": "0" * 64})
    assert there(lease) == {"tiny.py": "1"}
    assert found(["tiny"]) == {"tiny": "1"}


@pytest.mark.slow
def test_the_nodes_own_index_is_used_and_nothing_more_is_drawn_in(
    lease: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel in the folder that the node's installer looks into is installed without what it names as needed."""
    index = tmp_path / "index"
    index.mkdir()
    for name, needs in (("gpumarket_testonly_small", "Requires-Dist: gpumarket-testonly-huge\n"), ("other", "")):
        files = distribution(name, "1.0", {f"{name}.py": "N = 1"})
        files[f"{name}-1.0.dist-info/METADATA"] += needs
        files[f"{name}-1.0.dist-info/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            for path, text in files.items():
                wheel.writestr(path, text)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, capture_output=True)
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(index))
    order = {**ORDER, "python": str(tmp_path / "venv" / "bin" / "python"), "pins": ["gpumarket_testonly_small==1.0"]}
    steps.packages(order)
    assert there(lease) == {"gpumarket_testonly_small.py": "N = 1"}
    with pytest.raises(steps.Trouble, match="gpumarket-testonly-huge"):
        steps.packages({**order, "pins": ["gpumarket-testonly-huge==1.0"]})
    assert there(lease) == {"gpumarket_testonly_small.py": "N = 1"}


def test_a_failure_tells_package_node_reasons_and_ways_out() -> None:
    """Both ways that were tried have their words in it."""
    told = failure("lab-1", {"tiny": "1.0"}, on_node="no uv, no pip", from_here="no such wheel")
    for part in ("tiny 1.0", "lab-1", "nothing was changed", "no uv, no pip", "no such wheel", "--no-packages"):
        assert part in told
