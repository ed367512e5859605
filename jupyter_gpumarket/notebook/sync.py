"""`--sync`: the user's own modules, and the packages that they need, on the nodes before anything of theirs runs.

What has changed since the last time goes as one archive to the cluster process, which keeps all its nodes by it, also
those that join later. Packages go by a plan that is shown and agreed to.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from IPython.core.getipython import get_ipython
from IPython.core.inputtransformer2 import TransformerManager

from jupyter_gpumarket.api import CodeView, CodeWish, PackageLook, PackageWish
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import ClusterClient, connect
from jupyter_gpumarket.errors import NodeError
from jupyter_gpumarket.models import Lease
from jupyter_gpumarket.notebook.data import size_words
from jupyter_gpumarket.notebook.options import SyncOptions
from jupyter_gpumarket.notebook.stage import Stage, Table
from jupyter_gpumarket.notebook.sync_find import Found, and_of_before, find, project_of
from jupyter_gpumarket.notebook.sync_packages import Plan, Shelf, plan
from jupyter_gpumarket.notebook.values import transfer_words

LARGE_BYTES = 8 * 1024 * 1024
SHOWN_FILES = 10
SHOWN_LEFT_OUT = 5


class Prepared(NamedTuple):
    """Everything about this side, found before anything is rented."""

    options: SyncOptions
    found: Found


class Syncer:
    """Brings modules and packages to the clusters of one notebook."""

    def __init__(self, cluster_of: Callable[[str], ClusterClient], stage: Stage) -> None:
        self._cluster_of = cluster_of
        self._stage = stage
        self._told: set[str] = set()
        self._refused: set[tuple[str, ...]] = set()
        self._looked: set[tuple[object, ...]] = set()
        self._shelf: tuple[list[tuple[str, int]], Shelf] | None = None

    def prepare(self, options: SyncOptions, code: str) -> Prepared:
        """Find the code.

        Raises:
            BadRequest: a path that leads to no code, or too much of it.
        """
        python = TransformerManager().transform_cell(code) if code else ""
        found = find(project_of(Path.cwd()), loaded=dict(sys.modules), code=python, explicit=options.paths)
        return Prepared(options, found)

    def bring(self, prepared: Prepared, leases: Iterable[Lease]) -> int:
        """Have it on the nodes of these leases, and of all in the same clusters; waits until it is there.

        Returns how many files are there, those of earlier times included.

        Raises:
            NodeError: a node cannot have it; names node and reason.
        """
        self._tell(prepared.found)
        clusters = {lease.cluster_id or lease.lease_id: lease for lease in leases}
        count = 0
        for key, lease in clusters.items():
            cluster = self._cluster_of(lease.lease_id)
            count += self._bring_files(prepared, cluster, lease)
            if prepared.options.packages:
                self._bring_packages(prepared, cluster, key)
        return count

    def show(self, prepared: Prepared) -> None:
        """What would be brought."""
        found = prepared.found
        rows = tuple((name, str(own.path), size_words(own.file.size)) for name, own in sorted(found.files.items()))
        self._stage.table(Table(title=_what(found), headers=("on the node", "here", "size"), rows=rows))
        self._tell(found)
        if packages := sorted(self._shelves().of_modules(found.packages)):
            self._stage.say(f"packages that it imports: {', '.join(packages)}")

    # ── modules ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bring_files(self, prepared: Prepared, cluster: ClusterClient, lease: Lease) -> int:
        view = cluster.code()
        found = and_of_before(prepared.found, project_of(Path.cwd()), view.origins)
        had = {file.path: file.sha256 for file in view.files}
        files = {own.file.path: own for own in found.files.values()}
        changed = [path for path, own in files.items() if had.get(path) != own.file.sha256]
        gone = had.keys() - files.keys()
        ready = [node for node in view.nodes if node.state != "there"]
        if not changed and not gone and not ready:
            return len(files)
        size = sum(files[path].file.size for path in changed)
        if size > LARGE_BYTES:
            self._show_large(changed, files, lease)
        there = set(had.values())
        lacking = {own.file.sha256: own.content for own in files.values() if own.file.sha256 not in there}
        archive = cluster.put_blob(packed(lacking)) if lacking else ""
        origins = {name: tuple(str(place) for place in places) for name, places in found.modules.items()}
        wish = CodeWish(files=tuple(own.file for own in files.values()), archive=archive, origins=origins)
        answer = cluster.put_code(wish)
        _refuse_failures(answer, cluster)
        if changed or gone:
            parts = [f"{len(changed)} changed ({size_words(size)})"] if changed else []
            parts += [f"{len(gone)} removed"] if gone else []
            count = sum(node.state == "there" for node in answer.nodes)
            nodes = f"{count} node{'' if count == 1 else 's'}"
            self._stage.say(f"synced {_what(found)} to {nodes}: {', '.join(parts)}")
        for node in answer.nodes:
            if node.note:
                self._stage.say(f"{_names(cluster).get(node.lease_id, node.lease_id)}: {one_line(node.note, 300)}")
        return len(files)

    def _show_large(self, changed: list[str], files: Mapping[str, Any], lease: Lease) -> None:
        largest = sorted(changed, key=lambda path: -files[path].file.size)
        rows = tuple((path, size_words(files[path].file.size)) for path in largest[:SHOWN_FILES])
        size = sum(files[path].file.size for path in changed)
        title = f"syncing {len(changed)} files, {transfer_words(size, lease)}; the largest of them"
        self._stage.table(Table(title=title, headers=("file", "size"), rows=rows, right=frozenset({1})))

    def _tell(self, found: Found) -> None:
        """Remarks, each once; what was left out, when that has changed."""
        lines = list(found.remarks)
        if found.left_out:
            shown = [f"{path} ({why})" for path, why in sorted(found.left_out.items())[:SHOWN_LEFT_OUT]]
            more = f" and {len(found.left_out) - len(shown)} more" if len(found.left_out) > len(shown) else ""
            lines.append(f"not synced: {', '.join(shown)}{more}")
        for line in lines:
            if line not in self._told:
                self._told.add(line)
                self._stage.say(line)

    # ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _bring_packages(self, prepared: Prepared, cluster: ClusterClient, key: str) -> None:
        shelf = self._shelves()
        direct = shelf.of_modules(prepared.found.packages)
        pins = shelf.closure(direct)
        nodes = tuple(sorted(node.lease_id for node in cluster.code().nodes))
        question = (key, nodes, frozenset(pins), prepared.options.yes)
        if not pins or question in self._looked:
            return
        decided = plan(direct, shelf, cluster.look_for_packages(PackageLook(packages=pins)))
        for remark in decided.remarks:
            if remark not in self._told:
                self._told.add(remark)
                self._stage.say(one_line(remark, 300))
        if decided.install and not self._agreed(decided, yes=prepared.options.yes):
            self._looked.add(question)
            return
        if decided.install:
            where = tuple(dict.fromkeys(entry for entry in sys.path if entry))
            answer = cluster.put_packages(PackageWish(packages=decided.install, where=where))
            _refuse_failures(answer, cluster)
            told = ", ".join(f"{pin.name} {pin.version}" for pin in decided.install)
            replaced = "; what has another version loaded goes on with it until it is started anew"
            self._stage.say(f"installed {told}{replaced if decided.replaces else ''}")
        self._looked.add(question)

    def _shelves(self) -> Shelf:
        """What is installed here, looked at anew when a package folder has changed."""
        state = []
        for entry in sys.path:
            with contextlib.suppress(OSError):
                state.append((entry, os.stat(entry).st_mtime_ns))
        if self._shelf is None or self._shelf[0] != state:
            self._shelf = (state, Shelf())
        return self._shelf[1]

    def _agreed(self, decided: Plan, *, yes: bool) -> bool:
        """Show the plan, and ask once for each. Without an answer nothing is installed."""
        key = tuple(f"{pin.name}=={pin.version}" for pin in decided.install)
        if key in self._refused and not yes:
            return False
        self._stage.table(decided.table())
        answer = True if yes else self._stage.ask("install them? [y/N] ")
        if answer:
            return True
        self._refused.add(key)
        reason = "nobody can be asked here: say --yes to agree to it" if answer is None else "not installed"
        self._stage.say(f"{reason}; the cell runs without them")
        return False


def packed(contents: Mapping[str, bytes]) -> bytes:
    """The archive of the changes: contents under their hashes, the same each time."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for sha256, content in sorted(contents.items()):
            assert hashlib.sha256(content).hexdigest() == sha256, "contents are named by their hash"
            entry = zipfile.ZipInfo(sha256)
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return memory.getvalue()


def sync_paths(wanted: bool | str | Sequence[str]) -> tuple[str, ...] | None:
    """What `sync=` says: True for what is loaded, paths or names for those, False for nothing."""
    if isinstance(wanted, bool):
        return () if wanted else None
    return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def bring_to(leases: Iterable[Lease], options: SyncOptions) -> None:
    """For who has no magics at hand: bring what this process uses of the user's own code.

    Raises:
        BadRequest, NodeError: as `Syncer.prepare` and `Syncer.bring` say.
    """
    with connect(start=False) as client:
        syncer = Syncer(client.cluster, Stage(get_ipython()))
        syncer.bring(syncer.prepare(options, ""), leases)


def _names(cluster: ClusterClient) -> dict[str, str]:
    return {node.lease_id: one_line(node.name, 60) for node in cluster.nodes()}


def _refuse_failures(answer: CodeView, cluster: ClusterClient) -> None:
    failed = [node for node in answer.nodes if node.state == "failed"]
    if failed:
        names = _names(cluster)
        told = "; ".join(f"{names.get(node.lease_id, node.lease_id)}: {one_line(node.error, 1500)}" for node in failed)
        raise NodeError(f"not synced: {told}")


def _what(found: Found) -> str:
    count = len(found.files)
    names = ", ".join(list(found.modules)[:5]) + (", …" if len(found.modules) > 5 else "")
    return f"{names or 'no modules of yours'} ({count} file{'' if count == 1 else 's'}, {size_words(found.size)})"
