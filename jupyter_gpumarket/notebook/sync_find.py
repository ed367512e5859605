"""Which code is the user's own: the modules that a cell and this kernel use, and the files that make them up.

Names are followed as Python follows them: what the cell imports and what is loaded here, what that imports, and so on.
What lies under the project's folder is the user's own, what is installed is a package, the rest comes with Python.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import CodeFile
from jupyter_gpumarket.notebook.sync_skip import (
    Ignored,
    is_environment,
    why_not_by_content,
    why_not_by_name,
    why_not_by_size,
)
from jupyter_gpumarket.wire.syncing import MAX_FILES, MAX_TOTAL_BYTES

MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg", ".gpumarketignore")
OURSELVES = "jupyter_gpumarket"
# What a kernel has loaded, or a stand-in for it.
Modules = Mapping[str, ModuleType]


class Own(NamedTuple):
    """A file of the user's own code: where it lies here, and what it is on a node."""

    path: Path
    content: bytes
    file: CodeFile


class Found(NamedTuple):
    """What was found: files by their path on the node, what was left out and why, names of packages, remarks."""

    files: dict[str, Own]
    modules: Mapping[str, tuple[Path, ...]]
    left_out: dict[str, str]
    packages: frozenset[str]
    remarks: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(own.file.size for own in self.files.values())


def project_of(folder: Path) -> Path:
    """The folder of the project that a folder belongs to; never the home folder or one above it."""
    folder = folder.resolve()
    home = Path.home().resolve()
    for place in (folder, *folder.parents):
        if place == home or place in home.parents:
            break
        if any((place / mark).exists() for mark in MARKS):
            return place
    return folder


def imports_of(source: str | bytes) -> set[str]:
    """Top-level names that a piece of Python imports; none where it is no Python."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def find(project: Path, *, loaded: Modules, code: str = "", explicit: Sequence[str] = ()) -> Found:
    """The user's own code for a cell.

    Args:
        project: what lies under it is the user's own.
        loaded: the modules of this kernel.
        explicit: paths or names of modules instead of what the kernel has loaded; those may lie anywhere.

    Raises:
        BadRequest: a path or name that leads to no code, or twice to the same module; or too much.
    """
    search = _Search(project.resolve(), loaded)
    if explicit:
        for one in explicit:
            search.add_explicit(one)
    else:
        search.follow(sorted({name.partition(".")[0] for name in loaded}), tell_packages=False)
    search.follow(sorted(imports_of(code)))
    return search.found()


def and_of_before(found: Found, project: Path, origins: Mapping[str, Sequence[str]]) -> Found:
    """With the modules that were synced before, as they are now; those that are no more are not among them."""
    search = _Search(project.resolve(), {})
    for name, places in origins.items():
        there = [Path(place) for place in places if Path(place).exists()]
        if there and name not in found.modules:
            search.take(name, there)
    more = search.found()
    return Found(
        files={**more.files, **found.files},
        modules={**more.modules, **found.modules},
        left_out={**more.left_out, **found.left_out},
        packages=found.packages,
        remarks=found.remarks,
    )


class _Search:
    """One search."""

    def __init__(self, project: Path, loaded: Modules) -> None:
        self._project = project
        self._loaded = loaded
        self._files: dict[str, Own] = {}
        self._roots: dict[str, list[Path]] = {}
        self._left_out: dict[str, str] = {}
        self._packages: set[str] = set()
        self._remarks: list[str] = []
        self._ignored: dict[Path, Ignored] = {}
        self._tops: dict[Path, Path] = {}
        self._size = 0

    def found(self) -> Found:
        return Found(
            files=self._files,
            modules={name: tuple(places) for name, places in sorted(self._roots.items())},
            left_out=self._left_out,
            packages=frozenset(self._packages),
            remarks=tuple(self._remarks),
        )

    def follow(self, names: Iterable[str], *, tell_packages: bool = True) -> None:
        """Take in what these names lead to, and what that imports."""
        waiting = [(name, tell_packages) for name in names]
        while waiting:
            name, tells = waiting.pop(0)
            if name in self._roots or name == OURSELVES or not name.isidentifier():
                continue
            places = places_of(name, self._loaded)
            own = [place for place in places if is_own(place, self._project)]
            if own:
                if name in sys.stdlib_module_names:
                    self._remarks.append(f"{own[0]} has the name of a module of Python itself and is left out")
                    continue
                waiting += [(further, True) for further in sorted(self.take(name, own))]
            elif places and tells and not is_of_python(name, places):
                self._packages.add(name)

    def add_explicit(self, given: str) -> None:
        """A path or the name of a module.

        Raises:
            BadRequest: it leads to no code.
        """
        path = Path(given).expanduser().absolute()
        if not path.exists():
            self._add_named(given)
        elif path.is_file():
            if path.suffix != ".py" or (path.parent / "__init__.py").exists():
                reason = "part of a package: name the package's folder" if path.suffix == ".py" else "no Python module"
                raise BadRequest(f"--sync {given}: it is {reason}")
            self._add_at(path.stem, path)
        elif (path / "__init__.py").exists() or not _holds_modules(path):
            self._add_at(path.name, path)
        else:
            for name, place in sorted(_modules_in(path)):
                self._add_at(name, place)

    def _add_named(self, name: str) -> None:
        places = places_of(name, self._loaded) if name.isidentifier() else []
        if not places:
            raise BadRequest(f"--sync {name}: there is no such file or folder, and no module of this name")
        if is_of_python(name, places) or any("-packages" in part for part in places[0].parts):
            raise BadRequest(f"--sync {name}: it is installed, not your own; packages are brought as cells import them")
        self._add_at(name, *places)

    def _add_at(self, name: str, *places: Path) -> None:
        if not name.isidentifier():
            raise BadRequest(f"--sync {places[0]}: {name!r} cannot be imported")
        if name in self._roots and self._roots[name] != list(places):
            raise BadRequest(
                f"--sync: {self._roots[name][0]} and {places[0]} are both the module {name}; name one of them"
            )
        self.follow(sorted(self.take(name, list(places))))

    def take(self, name: str, places: list[Path]) -> set[str]:
        """Take a module's files in; what they import."""
        self._roots[name] = places
        self._tell_others(name, places)
        imported: set[str] = set()
        for place in places:
            for path in _files_at(place):
                own = self._kept(place, path)
                if own is None:
                    continue
                # Here already, and not only where it is sent to: all of it is in memory at once.
                self._size += own.file.size
                if len(self._files) >= MAX_FILES or self._size > MAX_TOTAL_BYTES:
                    much = f"more than {MAX_FILES:,} files or {MAX_TOTAL_BYTES // 1024**2} MB"
                    raise BadRequest(f"--sync: with {place} it is {much}; leave some out (.gpumarketignore)")
                former = self._files.setdefault(own.file.path, own)
                if former.path != own.path:
                    self._remarks.append(f"{own.file.path} is there twice: {former.path} is taken, {own.path} is not")
                elif path.suffix == ".py":
                    imported |= imports_of(own.content)
        return imported

    def _kept(self, place: Path, path: Path) -> Own | None:
        """The file, unless something speaks against it, which is then remembered."""
        name = path.relative_to(place.parent).as_posix()
        why = why_not_by_name(name) or self._why_not_here(place, path)
        content = b""
        if not why:
            try:
                why = why_not_by_size(path.stat().st_size)
                content = b"" if why else path.read_bytes()
                why = why or why_not_by_content(content)
            except OSError as error:
                why = f"it cannot be read: {error.strerror}"
        if why:
            self._left_out[name] = why
            return None
        file = CodeFile(path=name, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        return Own(path, content, file)

    def _why_not_here(self, place: Path, path: Path) -> str:
        if path.suffix == ".so" and sys.platform != "linux":
            return "built for this machine"
        if not path.is_file():
            return "a link to a folder" if path.is_symlink() else "no plain file"
        there, real = place.resolve().parent, path.parent.resolve() / path.name
        if path.is_symlink() and not path.resolve().is_relative_to(self._top_of(there)):
            return "a link that leads out of the project"
        # By both names, where a link leads to the code: an ignore file counts under either.
        by = self._left_out_by(there, real) or ("" if path == real else self._left_out_by(place.parent, path))
        return f"left out by {by}" if by else ""

    def _left_out_by(self, root: Path, path: Path) -> str:
        """The ignore file that leaves it out, of those from the top of its project down to it."""
        top = self._top_of(root)
        return self._ignored.setdefault(top, Ignored(top)).by(path)

    def _top_of(self, root: Path) -> Path:
        """The project of a folder that modules lie in: this one, or another one that a path of the user's leads to."""
        if root not in self._tops:
            self._tops[root] = self._project if root.is_relative_to(self._project) else project_of(root)
        return self._tops[root]

    def _tell_others(self, name: str, places: list[Path]) -> None:
        """Say where another module of the same name lies, which Python does not reach here either."""
        taken = {place.resolve() for place in places}
        for entry in sys.path:
            root = Path(entry or os.getcwd()).absolute()
            for other in (root / f"{name}.py", root / name):
                is_module = other.is_file() or (other / "__init__.py").is_file()
                if is_module and other.resolve() not in taken and is_own(other, self._project):
                    self._remarks.append(f"two modules are called {name}: {places[0]} is taken, {other} is not")


def places_of(name: str, loaded: Modules) -> list[Path]:
    """Where a top-level module lies: its file, or its folder (several for a namespace package). Imports nothing."""
    module = loaded.get(name)
    if module is not None:
        file, folders = module.__dict__.get("__file__"), list(module.__dict__.get("__path__") or ())
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError, AttributeError):
            return []
        if spec is None:
            return []
        file, folders = spec.origin if spec.has_location else None, list(spec.submodule_search_locations or ())
    places = [Path(str(folder)) for folder in folders] or ([Path(file)] if isinstance(file, str) else [])
    return [place.absolute() for place in places if place.exists()]


def is_own(place: Path, project: Path) -> bool:
    """Whether code lies under the project and is neither installed nor Python's own."""
    place = place.resolve()
    if not place.is_relative_to(project):
        return False
    inside = place.relative_to(project).parts[:-1]
    if any(part.startswith(".") or part.endswith("-packages") or part == "node_modules" for part in inside):
        return False
    if any(is_environment(project.joinpath(*inside[:depth])) for depth in range(1, len(inside) + 1)):
        return False
    return not any(place.is_relative_to(installed) for installed in _installed_places(project))


def is_of_python(name: str, places: list[Path]) -> bool:
    """Whether it comes with Python."""
    return name in sys.stdlib_module_names or name == "__main__" or not places


@functools.cache
def _installed_places(project: Path) -> list[Path]:
    """Where Python and packages lie, as far as that is not the project itself or above it."""
    places = {Path(path).resolve() for path in sysconfig.get_paths().values()}
    return [place for place in places if not project.is_relative_to(place)]


def _files_at(place: Path) -> Iterator[Path]:
    """A module's file, or all files of a package but those of folders that never travel; links to folders as such."""
    if place.is_file():
        yield place
        return
    for folder, folders, names in os.walk(place):
        here = Path(folder)
        yield from (here / name for name in sorted(folders) if (here / name).is_symlink())
        folders[:] = sorted(
            name
            for name in folders
            if not why_not_by_name(f"{name}/x") and not is_environment(here / name) and not (here / name).is_symlink()
        )
        yield from (here / name for name in sorted(names))


def _holds_modules(folder: Path) -> bool:
    """Whether a folder is one to search in, rather than a package."""
    return str(folder) in {str(Path(entry or os.getcwd()).absolute()) for entry in sys.path} or any(
        (one / "__init__.py").exists() for one in folder.iterdir() if one.is_dir()
    )


def _modules_in(folder: Path) -> Iterator[tuple[str, Path]]:
    for one in folder.iterdir():
        if one.suffix == ".py" and one.stem.isidentifier():
            yield one.stem, one
        elif one.is_dir() and one.name.isidentifier() and (one / "__init__.py").exists():
            yield one.name, one
