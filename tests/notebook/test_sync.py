"""What `--sync` finds and leaves out, and which packages it plans to install: decided without any node."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement

from jupyter_gpumarket.api import (
    CodeNode,
    CodeView,
    NodeSystem,
    PackageLook,
    PackagesFound,
    PackageThere,
    PackageWish,
)
from jupyter_gpumarket.config import Settings
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.nodes import versions
from jupyter_gpumarket.notebook import sync_find
from jupyter_gpumarket.notebook.options import Parser, SyncOptions, add_cell_arguments, cell_options
from jupyter_gpumarket.notebook.stage import Table
from jupyter_gpumarket.notebook.sync import Syncer
from jupyter_gpumarket.notebook.sync_find import Found, and_of_before, find, imports_of, project_of
from jupyter_gpumarket.notebook.sync_hint import hint
from jupyter_gpumarket.notebook.sync_packages import Installed, Shelf, plan
from jupyter_gpumarket.notebook.sync_skip import why_not_by_content, why_not_by_name


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook's folder with a module, a package, and what must not travel beside their code."""
    for path, text in {
        "helpers.py": "import json\nfrom own_pkg import tools\nimport msgspec",
        "unused.py": "",
        "own_pkg/__init__.py": "from . import tools",
        "own_pkg/tools.py": "import late_module",
        "own_pkg/table.json": "{}",
        "own_pkg/.env": "KEY=1",
        "own_pkg/server.pem": "",
        "own_pkg/try.ipynb": "{}",
        "own_pkg/hidden_key.py": "KEY = '''\n-----BEGIN RSA PRIVATE KEY-----\n'''",
        "own_pkg/generated.py": "",
        "own_pkg/kept_after_all.py": "",
        "own_pkg/big.bin": "x" * 3_000_000,
        "own_pkg/__pycache__/tools.pyc": "",
        "late_module.py": "",
        ".gitignore": "!\nodd\\\ngenerated.py\nkept_after_all.py\n",
        ".gpumarketignore": "!kept_after_all.py\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def found_in(project: Path, code: str = "", *explicit: str, loaded: dict[str, ModuleType] | None = None) -> Found:
    return find(project, loaded=loaded or {}, code=code, explicit=explicit)


def test_imports_are_followed_to_own_code_and_packages(project: Path) -> None:
    """What the cell imports, what that imports, and so on: own files by their path, packages by name, Python not."""
    found = found_in(project, "import helpers")
    assert {"helpers.py", "own_pkg/__init__.py", "own_pkg/tools.py", "late_module.py"} <= set(found.files)
    assert "unused.py" not in found.files
    assert found.packages == {"msgspec"}


def test_what_the_kernel_has_loaded_is_found_too(project: Path) -> None:
    """A module that is loaded here counts, although the cell does not name it; other people's modules do not."""
    own = ModuleType("unused")
    own.__file__ = str(project / "unused.py")
    found = found_in(project, loaded={"unused": own, "pytest": pytest, "os": os})
    assert set(found.files) == {"unused.py"}
    assert not found.packages


def test_secrets_and_what_is_no_code_stay_here(project: Path) -> None:
    """Hidden files, keys by name and content, notebooks, caches, large data and ignored files do not travel."""
    found = found_in(project, "import own_pkg")
    assert set(found.files) == {
        *("own_pkg/__init__.py", "own_pkg/tools.py", "own_pkg/table.json", "own_pkg/kept_after_all.py"),
        "late_module.py",
    }
    assert found.left_out["own_pkg/hidden_key.py"] == "it holds a private key"
    assert found.left_out["own_pkg/generated.py"] == "left out by .gitignore"
    assert "gm.put" in found.left_out["own_pkg/big.bin"]


@pytest.mark.parametrize(
    ("path", "goes"),
    [
        *[(path, True) for path in ("a.py", "pkg/tokens.py", "pkg/data.csv", "pkg/environment.py", "pkg/key.py")],
        *[(path, False) for path in (".env", "pkg/.env.local", "prod.env", "pkg/.git/config", "a/.venv/b.py")],
        *[
            (path, False)
            for path in (
                "id_rsa",
                "ID_ED25519.pub",
                "x.key",
                "a/prod.tfvars",
                "kubeconfig",
                "pkg/secrets.py",
                "secrets.toml",
            )
        ],
        *[(path, False) for path in ("aws_credentials", "pkg/api_token.txt", "kaggle.json", "service-account-1.json")],
        *[(path, False) for path in ("a.ipynb", "pkg/__pycache__/a.pyc", "x.egg-info/PKG-INFO", "node_modules/a.py")],
    ],
)
def test_names_decide_what_may_travel(path: str, goes: bool) -> None:
    """The table of names: code and small data go, whatever may be a secret does not."""
    assert (why_not_by_name(path) == "") is goes


def test_a_key_inside_of_a_file_is_seen() -> None:
    """Content decides as well, whatever a file's name is."""
    assert why_not_by_content(b"a\n-----BEGIN OPENSSH PRIVATE KEY-----\nb")
    assert not why_not_by_content(b"PATTERN = '-----BEGIN'")


@pytest.mark.parametrize(
    "text",
    [
        rb'{"private_key": "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQ"}',
        b'KEY = """-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7"""',
        b'KEY = (\n    "-----BEGIN EC PRIVATE KEY-----\\n"\n    "MHcCAQEEIIrYSSNQFaA2Hwf1dur"',
        b"    -----BEGIN ENCRYPTED PRIVATE KEY-----\n    MIIFHDBOBgkqh",
    ],
)
def test_a_key_inside_of_a_text_is_seen(text: bytes) -> None:
    """The file of a service account and a key in a string are keys too, wherever in a line they begin."""
    assert why_not_by_content(text)


def test_a_word_about_keys_is_no_key() -> None:
    """Code that looks for keys, or writes their first line, goes with the rest."""
    assert not why_not_by_content(b'if text.startswith("-----BEGIN PRIVATE KEY-----"): return "it holds a private key"')
    assert not why_not_by_content(b'HEAD = "-----BEGIN RSA PRIVATE KEY-----"\nTAIL = "-----END RSA PRIVATE KEY-----"')


def test_ignore_files_count_wherever_the_path_leads(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Another project's ignore file at its top counts for a package further down, also through a link."""
    other = tmp_path_factory.mktemp("another")
    for path, text in {
        "pyproject.toml": "",
        ".gitignore": "local.py\n",
        "src/far/__init__.py": "",
        "src/far/local.py": "",
    }.items():
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_text(text)
    (project / "near").symlink_to(other / "src")

    for given in (other / "src" / "far", project / "near" / "far"):
        found = found_in(project, "", str(given))
        assert set(found.files) == {"far/__init__.py"}
        assert found.left_out["far/local.py"] == "left out by .gitignore"


def test_explicit_paths_and_names_lead_to_code(project: Path) -> None:
    """A file, a package's folder, a folder of modules, a module's name."""
    (project / "src" / "inner").mkdir(parents=True)
    (project / "src" / "inner" / "__init__.py").write_text("")
    assert set(found_in(project, "", "unused.py").files) == {"unused.py"}
    assert "own_pkg/tools.py" in found_in(project, "", str(project / "own_pkg")).files
    assert set(found_in(project, "", "src").files) == {"inner/__init__.py"}
    assert "late_module.py" in found_in(project, "", "late_module").files


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("nowhere.py",), "no such file or folder"),
        (("own_pkg/tools.py",), "name the package's folder"),
        (("own_pkg/table.json",), "no Python module"),
        (("msgspec",), "it is installed"),
        (("unused.py", "other/unused.py"), "are both the module unused"),
    ],
)
def test_paths_that_cannot_be_are_refused(project: Path, given: tuple[str, ...], told: str) -> None:
    """Each with its reason, before anything is rented; so is the same module from two places."""
    (project / "other").mkdir()
    (project / "other" / "unused.py").write_text("")
    with pytest.raises(BadRequest, match=told):
        found_in(project, "", *given)


def test_too_much_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of data that is imported by its name does not fill this machine's memory, or the line."""
    monkeypatch.setattr(sync_find, "MAX_TOTAL_BYTES", 10)
    with pytest.raises(BadRequest, match="leave some out"):
        found_in(project, "import helpers")


def test_two_roots_with_one_name_are_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python takes the first; so do we, and the other one is named."""
    (project / "lib").mkdir()
    (project / "lib" / "helpers.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(project / "lib")])
    found = found_in(project, "import helpers")
    assert found.files["helpers.py"].path == project / "helpers.py"
    assert [remark for remark in found.remarks if str(project / "lib" / "helpers.py") in remark]


def test_a_link_out_of_the_project_is_not_followed(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A link in a package cannot bring a file of elsewhere along."""
    outside = tmp_path_factory.mktemp("elsewhere") / "diary.txt"
    outside.write_text("mine")
    (project / "own_pkg" / "notes.txt").symlink_to(outside)
    (project / "own_pkg" / "more").symlink_to(outside.parent)
    found = found_in(project, "import own_pkg")
    assert "own_pkg/notes.txt" not in found.files
    assert "leads out" in found.left_out["own_pkg/notes.txt"]
    assert found.left_out["own_pkg/more"] == "a link to a folder"


def test_what_was_synced_before_goes_on_as_it_is_now(project: Path) -> None:
    """A later sync of something else keeps earlier modules up to date, and lets go of those that are deleted."""
    found = found_in(project, "import unused")
    origins = {"late_module": [str(project / "late_module.py")], "gone": [str(project / "gone.py")]}
    assert set(and_of_before(found, project, origins).files) == {"unused.py", "late_module.py"}


def test_the_home_folder_is_no_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project ends below the home folder, also where that is under version control."""
    (tmp_path / ".git").mkdir()
    (tmp_path / "work" / "deep").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert project_of(tmp_path / "work" / "deep") == tmp_path / "work" / "deep"
    (tmp_path / "work" / "pyproject.toml").touch()
    assert project_of(tmp_path / "work" / "deep") == tmp_path / "work"


def test_imports_are_read_without_running_anything() -> None:
    """Absolute imports anywhere in the text; relative ones stay in their package; no Python means none."""
    source = "import a.b, c as d\ndef f():\n    from e.g import h\nfrom . import i\nfrom .j import k"
    assert imports_of(source) == {"a", "c", "e"}
    assert imports_of("no python at all (") == set()


def test_an_error_names_the_way_to_a_module_that_is_here(project: Path) -> None:
    """A missing module of one's own, or a missing package, tells `--sync`; one that is nowhere tells nothing."""
    assert "`%%gpu --sync` brings your own modules" in hint(["No module named 'helpers'"])
    assert "shows a plan" in hint(["...", "ModuleNotFoundError: No module named 'msgspec.json'"])
    assert hint(["No module named 'nowhere_at_all'", "No module named 'json'", "division by zero"]) == ""


# ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HERE = {
    "frames": Installed("frames", "2.2.0", 1000, (Requirement("dates>=1"), Requirement("win; sys_platform=='x'"))),
    "dates": Installed("dates", "1.5", 100, (Requirement("six"),)),
    "six": Installed("six", "1.17", 10, ()),
    "torch": Installed("torch", "2.5.0", 900, (Requirement("six"),)),
    "mine": Installed("mine", "0.1", 1, (), is_editable=True),
}


def planned(direct: set[str], there: dict[str, str]) -> tuple[dict[str, str], dict[str, str], str]:
    """What is installed with which reasons, and what is remarked, for a node that has `there`."""
    shelf = Shelf(HERE.get, dict)
    pins = shelf.closure(direct)
    found = tuple(
        PackageThere(
            lease_id="n",
            name=pin.name,
            version=there.get(pin.name, ""),
            verdict=versions.verdict_on(pin.name, pin.version, there.get(pin.name, ""), size=pin.size),
        )
        for pin in pins
    )
    system = NodeSystem(lease_id="n", system="Linux", machine="x86_64")
    decided = plan(direct, shelf, PackagesFound(there=found, systems=(system,)))
    return {pin.name: pin.version for pin in decided.install}, decided.reasons, " ".join(decided.remarks)


@pytest.mark.parametrize(
    ("direct", "there", "install"),
    [
        ({"frames"}, {}, {"frames", "dates", "six"}),
        ({"frames"}, {"frames": "2.2.9"}, set()),
        ({"frames"}, {"frames": "2.1.0", "dates": "1.0"}, {"frames"}),
        ({"frames"}, {"dates": "0.9", "six": "1.0"}, {"frames", "dates"}),
        ({"torch"}, {"torch": "2.1.0+cu121"}, set()),
        ({"torch"}, {}, {"torch", "six"}),
        ({"mine"}, {}, set()),
        ({"unknown"}, {}, set()),
    ],
)
def test_the_plan_has_what_is_missing_and_no_more(direct: set[str], there: dict[str, str], install: set[str]) -> None:
    """Missing ones with what they need, where the node's own is not enough; heavy ones are never replaced."""
    assert set(planned(direct, there)[0]) == install


def test_the_plan_tells_why_and_what_is_kept() -> None:
    """Each line has its reason; a heavy package that differs and one in editable mode are told."""
    _, reasons, _ = planned({"frames"}, {"frames": "2.1.0"})
    assert reasons["frames"] == "your code imports it; the node has 2.1.0"
    assert reasons["dates"] == "frames needs it"
    assert "torch 2.1.0 of the node's image is kept; here it is 2.5.0" in planned({"torch"}, {"torch": "2.1.0"})[2]
    assert "editable" in planned({"mine"}, {})[2]


class Desk:
    """A cluster process and a screen, as far as packages need them."""

    def __init__(self, answer: bool | None) -> None:
        self.answer = answer
        self.shown: list[str] = []
        self.ordered: list[PackageWish] = []
        self.asked = self.looked = 0

    def code(self) -> CodeView:
        return CodeView(nodes=(CodeNode(lease_id="n", state="there"),))

    def look_for_packages(self, look: PackageLook) -> PackagesFound:
        self.looked += 1
        there = tuple(PackageThere(lease_id="n", name=pin.name, version="", verdict="missing") for pin in look.packages)
        return PackagesFound(there=there, systems=(NodeSystem(lease_id="n", system="Linux", machine="x86_64"),))

    def put_packages(self, wish: PackageWish) -> CodeView:
        self.ordered.append(wish)
        return CodeView()

    def say(self, text: str) -> None:
        self.shown.append(text)

    def table(self, table: Table) -> None:
        self.shown.append(table.text())

    def ask(self, _question: str) -> bool | None:
        self.asked += 1
        return self.answer


@pytest.mark.parametrize(
    ("answer", "yes", "installs"), [(True, False, 1), (False, False, 0), (None, False, 0), (None, True, 1)]
)
def test_nothing_is_installed_that_was_not_agreed_to(
    project: Path, answer: bool | None, yes: bool, installs: int
) -> None:
    """The plan is shown, a no or nobody to ask installs nothing and is not asked again, `--yes` agrees.

    Nor are the nodes: they are looked at once, until something else is needed or `--yes` is said after all.
    """
    assert project.exists()
    desk: Any = Desk(answer)
    syncer = Syncer(lambda _lease_id: desk, desk)
    lease: Any = SimpleNamespace(lease_id="n", cluster_id="", offer=None)
    for _ in range(2):
        syncer.bring(syncer.prepare(SyncOptions(yes=yes), "import msgspec"), [lease])
    assert len(desk.ordered) == installs
    assert desk.asked <= 1
    assert desk.looked == 1
    assert "your code imports it" in desk.shown[0]
    syncer.bring(syncer.prepare(SyncOptions(yes=True), "import msgspec"), [lease])
    assert desk.ordered


@pytest.mark.parametrize(
    ("line", "setting", "wanted"),
    [
        ("", False, None),
        ("", True, SyncOptions()),
        ("--no-sync", True, None),
        ("--sync", False, SyncOptions()),
        (
            "--sync a.py,src/b --no-packages --yes",
            False,
            SyncOptions(paths=("a.py", "src/b"), packages=False, yes=True),
        ),
    ],
)
def test_the_line_and_the_setting_say_what_is_synced(line: str, setting: bool, wanted: SyncOptions | None) -> None:
    """The line wins over the setting."""
    parser = Parser(prog="%%gpu")
    add_cell_arguments(parser)
    assert cell_options(parser.parse_args(line.split()), Settings(sync=setting)).sync == wanted


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "verdict"),
    [
        ("frames", "2.2.1", "", "missing"),
        ("frames", "2.2.1", "2.2.9", "fits"),
        ("frames", "2.2.1", "2.3.0", "differs"),
        ("torch", "2.2.1", "2.3.0", "kept"),
        ("nvidia-cublas-cu12", "12.4", "12.1", "kept"),
        ("numpy", "2.2", "2.0", "kept"),
    ],
)
def test_what_a_version_on_a_node_means(name: str, ours: str, theirs: str, verdict: str) -> None:
    """The first two numbers count; heavy ones and those that set-up decides about stay as they are."""
    assert versions.verdict_on(name, ours, theirs) == verdict
    assert versions.verdict_on(name, "1.0", "2.0", size=10**9) == "kept"
