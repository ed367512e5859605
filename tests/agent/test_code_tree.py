"""The user's own modules on the node: whole or not at all, inside of their folder, and dropped when they change."""

from __future__ import annotations

import hashlib
import importlib
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_gpumarket.agent import sync
from jupyter_gpumarket.agent.code_tree import CodeTree
from jupyter_gpumarket.agent.folder import NodeFolder
from jupyter_gpumarket.models import CodeFile
from jupyter_gpumarket.wire.syncing import CodeTaken, TakeCode, tree_of


class Site:
    """A lease's folder, and orders for it."""

    def __init__(self, root: Path) -> None:
        self.folder = NodeFolder(root)
        self.folder.make()
        self.code = CodeTree(self.folder)
        self.place = root / "sync" / "current"

    def take(self, files: dict[str, str], *, sent: dict[str, str] | None = None) -> CodeTaken:
        """Order these files, with the archive of those that are `sent` (all of them)."""
        listed = tuple(
            CodeFile(path=path, sha256=hashlib.sha256(text.encode()).hexdigest(), size=len(text.encode()))
            for path, text in files.items()
        )
        sha256 = hashlib.sha256(repr(sorted((files if sent is None else sent).items())).encode()).hexdigest()
        with zipfile.ZipFile(self.folder.blob(sha256), "w") as packed:
            for text in {*(files if sent is None else sent).values()}:
                packed.writestr(hashlib.sha256(text.encode()).hexdigest(), text)
            packed.writestr("../../escaped.py", "never read, for no content is named so")
        return self.code.take(TakeCode(tree=tree_of(listed), files=listed, archive=sha256))

    def there(self) -> dict[str, str]:
        return {
            path.relative_to(self.place).as_posix(): path.read_text()
            for path in sorted(self.place.rglob("*.py"))
            if path.is_file()
        }


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "lease")


def test_changes_and_deletions_arrive_with_only_what_changed(site: Site) -> None:
    """A second list needs only what is new; what is not on it is gone."""
    assert site.take({"a.py": "1", "pkg/b.py": "2", "c.py": "3"}).error == ""
    told = site.take({"a.py": "1", "pkg/b.py": "22"}, sent={"pkg/b.py": "22"})
    assert told.error == ""
    assert site.there() == {"a.py": "1", "pkg/b.py": "22"}
    assert told.tree == site.code.tree


@pytest.mark.parametrize(
    "path",
    [
        "../up.py",
        "/etc/cron.d/x",
        "a/../../b.py",
        "a//b.py",
        "./a.py",
        "a\\..\\b.py",
        "C:/x.py",
        "a\nb.py",
        "",
        "a/",
        "..",
    ],
)
def test_hostile_paths_are_refused(site: Site, path: str) -> None:
    """Nothing but plain relative paths counts, and a refused list changes nothing."""
    site.take({"good.py": "1"})
    told = site.take({path: "evil", "good.py": "2"})
    assert "not a plain path" in told.error
    assert site.there() == {"good.py": "1"}
    assert not list(site.folder.root.parent.glob("*.py"))


def test_a_file_cannot_be_a_folder_too(site: Site) -> None:
    """Two entries that contradict each other are refused by name."""
    assert "a file and a folder at once" in site.take({"a": "1", "a/b.py": "2"}).error


def test_a_list_whose_contents_did_not_all_come_changes_nothing(site: Site) -> None:
    """Half of a change is never seen, and the file that is missing is named."""
    site.take({"a.py": "1"})
    told = site.take({"a.py": "2", "b.py": "3"}, sent={"a.py": "2"})
    assert "'b.py' did not come" in told.error
    assert site.there() == {"a.py": "1"}


def test_a_file_that_a_cell_has_changed_is_not_taken_for_the_users(site: Site) -> None:
    """What lies on the node is hashed anew before it counts as there."""
    site.take({"a.py": "1"})
    (site.place / "a.py").write_text("something else")
    assert "did not come" in site.take({"a.py": "1", "b.py": "2"}, sent={"b.py": "2"}).error


@pytest.fixture
def refresher(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[sync.Refresher]:
    """A process that knows the folder and has it on its path."""
    monkeypatch.setattr(sys, "path", [str(site.place), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield sync.Refresher(site.folder.root / "sync")
    for name in [name for name in sys.modules if name.startswith("synced_")]:
        del sys.modules[name]


def test_changed_modules_are_imported_anew(site: Site, refresher: sync.Refresher) -> None:
    """After a change the next import brings the new code, also of a module that only uses the changed one."""
    site.take({"synced_a.py": "N = 1", "synced_b.py": "from synced_a import N"})
    refresher.look()
    assert importlib.import_module("synced_b").N == 1
    site.take({"synced_a.py": "N = 2", "synced_b.py": "from synced_a import N"})
    assert refresher.look() == ["synced_a", "synced_b"]
    assert importlib.import_module("synced_b").N == 2


def test_names_of_a_session_lead_to_the_new_code(site: Site, refresher: sync.Refresher) -> None:
    """`import m` and `from m import f` of earlier cells mean the new module; other values stay what they are."""
    site.take({"synced_a.py": "def f():\n    return 1\nclass C: pass"})
    refresher.look()
    namespace: dict[str, Any] = {}
    exec("import synced_a\nfrom synced_a import f, C\nmade = C()\nn = 5", namespace)
    former = namespace["C"]
    site.take({"synced_a.py": "def f():\n    return 2\nclass C: pass"})
    refresher.look(namespace)
    assert (namespace["f"](), namespace["synced_a"].f(), namespace["n"]) == (2, 2, 5)
    assert namespace["C"] is not former
    assert type(namespace["made"]) is former


def test_data_that_changed_drops_no_module(site: Site, refresher: sync.Refresher) -> None:
    """Only code that changed has modules imported anew."""
    site.take({"synced_a.py": "N = 1", "table.json": "1"})
    refresher.look()
    module = importlib.import_module("synced_a")
    site.take({"synced_a.py": "N = 1", "table.json": "2"})
    assert refresher.look() == []
    assert importlib.import_module("synced_a") is module


def test_a_module_that_does_not_compile_is_told_and_the_name_kept(
    site: Site, refresher: sync.Refresher, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error in new code is said before the cell, and does not take the session's names away."""
    site.take({"synced_a.py": "N = 1"})
    refresher.look()
    namespace: dict[str, Any] = {"synced_a": importlib.import_module("synced_a")}
    site.take({"synced_a.py": "def broken("})
    refresher.look(namespace)
    assert "synced_a cannot be imported anew: SyntaxError" in capsys.readouterr().err
    assert namespace["synced_a"].N == 1


def test_whoever_has_not_noticed_is_named(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent waits for Dask processes that live and still go by the former list; dead ones do not count."""
    monkeypatch.setattr("jupyter_gpumarket.agent.code_tree.NOTICE_S", 0.0)
    site.take({"a.py": "1"})
    seen = site.folder.root / "sync" / "seen"
    (seen / "1").write_text("former")
    (seen / str(2**22 + 1)).write_text("former")
    assert "process 1" in site.code.noticed()
    (seen / "1").write_text(site.code.tree)
    assert site.code.noticed() == ""
