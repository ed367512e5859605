"""The user's own modules on the node: one folder that is on `sys.path` of everything that the agent starts.

`sync/current` is a link to the folder of one list of files. A new list gets a folder of its own, made of files that are
there and files that came; when it is whole the link is turned, at once. So nobody ever sees half of a change.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
import zipfile
from pathlib import Path
from typing import Self

import msgspec
import psutil

from jupyter_gpumarket.agent import sync
from jupyter_gpumarket.agent.folder import NodeFolder, write_atomically
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import CodeFile
from jupyter_gpumarket.wire.syncing import EMPTY, CodeTaken, TakeCode, check_files, decoded, tree_of

# So long Dask's processes have to take notice of new modules; they look several times a second.
NOTICE_S = 10.0
POLL_S = 0.05


class CodeTree:
    """The code folder of one lease."""

    def __init__(self, folder: NodeFolder) -> None:
        self._folder = folder
        self._root = folder.root / sync.FOLDER
        self._link = self._root / sync.CURRENT
        self._seen = self._root / sync.SEEN
        # Dask's processes end with their agent: what is there is of former ones.
        shutil.rmtree(self._seen, ignore_errors=True)
        self._seen.mkdir(mode=0o700, parents=True, exist_ok=True)
        _empty_place(folder.root / sync.PACKAGES)
        _empty_place(self._root)

    @property
    def tree(self) -> str:
        """What is there now."""
        return sync.tree_at(self._root)

    def take(self, order: TakeCode) -> CodeTaken:
        """Have these files there; all or nothing. Blocks for as long as the disk takes."""
        try:
            _check(order)
            if order.tree != self.tree:
                self._become(order)
        except (BadRequest, OSError, zipfile.BadZipFile) as error:
            reason = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
            return CodeTaken(tree=self.tree, error=f"the node cannot keep your modules: {reason}")
        return CodeTaken(tree=order.tree)

    def noticed(self) -> str:
        """Wait until the Dask processes of this node have dropped the former modules; else which have not. Blocks."""
        deadline = time.monotonic() + NOTICE_S
        while behind := self._behind():
            if time.monotonic() > deadline:
                return (
                    f"{len(behind)} Dask processes were too busy to drop the former modules within {NOTICE_S:g} s "
                    f"(process {', '.join(behind[:5])}); they do it when they can"
                )
            time.sleep(POLL_S)
        return ""

    def _behind(self) -> list[str]:
        behind = []
        for path in self._seen.iterdir():
            if not path.name.isdigit():
                continue
            if not psutil.pid_exists(int(path.name)):
                path.unlink(missing_ok=True)
                continue
            with contextlib.suppress(OSError):
                if path.read_text("ascii") != self.tree:
                    behind.append(path.name)
        return behind

    def _become(self, order: TakeCode) -> None:
        before = {file.path: file.sha256 for file in self._record()}
        draft = self._root / f"draft-{uuid.uuid4().hex}"
        draft.mkdir(mode=0o700)
        try:
            with _Archive(self._folder.blob(order.archive) if order.archive else None) as archive:
                for file in order.files:
                    target = draft / file.path
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    there = self._link / file.path
                    if before.get(file.path) == file.sha256 and _hash(there) == file.sha256:
                        os.link(there, target)
                    else:
                        _write(target, archive.content(file))
            write_atomically(self._root / f"{order.tree}.json", msgspec.json.encode(order.files))
            whole = self._root / order.tree
            shutil.rmtree(whole, ignore_errors=True)
            draft.replace(whole)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        former = self.tree
        self._turn(order.tree)
        self._tidy({order.tree, former})

    def _turn(self, tree: str) -> None:
        draft = self._root / f"{sync.CURRENT}.new"
        draft.unlink(missing_ok=True)
        draft.symlink_to(tree)
        draft.replace(self._link)

    def _tidy(self, kept: set[str]) -> None:
        """The former one stays, for whoever is in the middle of it."""
        for path in self._root.iterdir():
            if path in (self._link, self._seen) or path.stem in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _record(self) -> tuple[CodeFile, ...]:
        try:
            return decoded((self._root / f"{self.tree}.json").read_bytes())
        except (OSError, BadRequest):
            return ()


class _Archive:
    """The files that came, by their hash."""

    def __init__(self, path: Path | None) -> None:
        self._zip = zipfile.ZipFile(path) if path is not None else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._zip is not None:
            self._zip.close()

    def content(self, file: CodeFile) -> bytes:
        """A file's bytes, checked.

        Raises:
            BadRequest: they are not there, or are not what the list says.
        """
        data = b""
        with contextlib.suppress(KeyError):
            if self._zip is not None:
                with self._zip.open(file.sha256) as entry:
                    data = entry.read(file.size + 1)
        if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
            raise BadRequest(f"{file.path[:200]!r} did not come with its announced content")
        return data


def _check(order: TakeCode) -> None:
    check_files(order.files)
    if order.tree != tree_of(order.files):
        raise BadRequest("the list of files has another hash than announced")


def _empty_place(root: Path) -> None:
    """Have `current` there before anything looks into it: Python remembers folders that are none."""
    if not (root / sync.CURRENT).exists():
        (root / EMPTY).mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / sync.CURRENT).unlink(missing_ok=True)
        (root / sync.CURRENT).symlink_to(EMPTY)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _hash(path: Path) -> str:
    """What a file holds; a cell may have written into it."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() if not path.is_symlink() else ""
    except OSError:
        return ""
