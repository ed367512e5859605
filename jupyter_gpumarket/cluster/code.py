"""The user's own modules and packages, wanted on every node of this cluster before anything else runs there.

What is wanted is on this disk: lists of files by content, and the contents. Each node is brought there by a loop of
its own, which compares what the node says it has with what is wanted; so it makes no difference when a node joins,
falls silent or is started anew. What differs goes as one archive, by the way of inputs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import logging
import threading
import zipfile
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from jupyter_gpumarket.api import CodeNode, CodeView, CodeWish, PackagePin, PackageWish
from jupyter_gpumarket.cluster.blobs import BlobStore
from jupyter_gpumarket.config import private_folder, write_private
from jupyter_gpumarket.errors import BadRequest, GpuMarketError, NodeError, Unreachable
from jupyter_gpumarket.models import CodeFile, Record
from jupyter_gpumarket.wire.messages import AgentReady
from jupyter_gpumarket.wire.syncing import EMPTY, SHA256, CodeTaken, TakeCode, check_files, decoded, tree_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

KEPT_TREES = 20
RETRY_S = 1.0
# So long an agent that can be reached may take to have the files in place; it writes at most 256 MiB, and waits up to
# ten seconds for Dask's processes to take notice.
ANSWER_S = 180.0
# An archive that goes over more slowly is not on its way any more.
SLOWEST_BYTES_S = 20_000
# So long a door waits for a node that can be reached (packages may be large), and for one that cannot.
REACHED_PATIENCE_S = 1200.0
SILENT_PATIENCE_S = 30.0


class CodeRecord(Record, frozen=True, kw_only=True):
    """sync.json."""

    files: tuple[CodeFile, ...] = ()
    origins: dict[str, tuple[str, ...]] = {}
    packages: tuple[PackagePin, ...] = ()
    where: tuple[str, ...] = ()


class Code:
    """What is wanted, and the files for it."""

    def __init__(self, folder: Path, blobs: BlobStore) -> None:
        self._file = folder / "sync.json"
        self._folder = private_folder(folder / "code")
        self._trees = private_folder(folder / "code" / "trees")
        self._blobs = blobs
        # Two notebooks may say at once what they want: the one's contents are not tidied away by the other.
        self._wanting = threading.Lock()
        self.record = CodeRecord()
        with contextlib.suppress(FileNotFoundError):
            self.record = msgspec.json.decode(self._file.read_bytes(), type=CodeRecord)
        self.tree = tree_of(self.record.files)

    def want_files(self, wish: CodeWish) -> None:
        """Have these files on the nodes from now on. Blocks.

        Raises:
            BadRequest: a path that leads elsewhere, too much, or a file that is neither here nor in the archive.
        """
        check_files(wish.files)
        with self._wanting:
            self._want(wish)

    def _want(self, wish: CodeWish) -> None:
        if wish.archive:
            self._unpack(wish)
        for file in wish.files:
            if not (self._folder / file.sha256).exists():
                raise BadRequest(f"files: the content of {file.path[:200]!r} is not here; send it in the archive")
        tree = tree_of(wish.files)
        write_private(self._trees / f"{tree}.json", msgspec.json.encode(wish.files))
        self._change(files=wish.files, origins=wish.origins)
        self.tree = tree
        self._tidy()

    def want_packages(self, wish: PackageWish) -> None:
        """Have these on the nodes from now on, besides those that were wanted before."""
        pins = {pin.name: pin for pin in (*self.record.packages, *wish.packages)}
        self._change(packages=tuple(pins.values()), where=wish.where or self.record.where)

    def unwant_packages(self, wish: PackageWish, before: tuple[PackagePin, ...]) -> None:
        """What a node cannot have is not wanted any more: of these packages, what was wanted before is wanted again."""
        names = {pin.name for pin in wish.packages}
        kept = {pin.name: pin for pin in self.record.packages if pin.name not in names}
        kept |= {pin.name: pin for pin in before if pin.name in names}
        self._change(packages=tuple(kept.values()))

    def archive(self, there: str) -> str:
        """The blob with what a node lacks that has the tree `there`. Blocks."""
        had = {file.sha256 for file in self._listed(there)}
        lacking = sorted({file.sha256 for file in self.record.files} - had)
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as packed:
            for sha256 in lacking:
                # An entry without a time of day: the same files make the same archive.
                entry = zipfile.ZipInfo(sha256)
                entry.compress_type = zipfile.ZIP_DEFLATED
                packed.writestr(entry, (self._folder / sha256).read_bytes())
        content = memory.getvalue()
        sha256 = hashlib.sha256(content).hexdigest()
        if not self._blobs.has(sha256):
            writer = self._blobs.writer(sha256)
            writer.write(content)
            writer.finish()
        return sha256

    def size_of(self, archive: str) -> int:
        """Bytes of an archive."""
        return self._blobs.path(archive).stat().st_size

    def order(self, archive: str) -> TakeCode:
        """The order that goes with an archive."""
        return TakeCode(tree=self.tree, files=self.record.files, archive=archive)

    def _unpack(self, wish: CodeWish) -> None:
        wanted = {file.sha256: file for file in wish.files}
        try:
            with zipfile.ZipFile(self._blobs.path(wish.archive)) as packed:
                for sha256 in wanted.keys() & set(packed.namelist()):
                    with packed.open(sha256) as entry:
                        content = entry.read(wanted[sha256].size + 1)
                    if hashlib.sha256(content).hexdigest() != sha256:
                        raise BadRequest(f"archive: {wanted[sha256].path[:200]!r} has another content than announced")
                    write_private(self._folder / sha256, content)
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            raise BadRequest(f"archive: it cannot be read: {error}") from None

    def _listed(self, tree: str) -> tuple[CodeFile, ...]:
        try:
            return decoded((self._trees / f"{tree}.json").read_bytes())
        except (OSError, BadRequest):
            return ()

    def _tidy(self) -> None:
        """Forget old lists, and contents that no list names."""
        lists = sorted(self._trees.iterdir(), key=lambda path: path.stat().st_mtime)
        for path in lists[:-KEPT_TREES]:
            path.unlink()
        named = {file.sha256 for path in lists[-KEPT_TREES:] for file in self._listed(path.stem)}
        for path in self._folder.iterdir():
            if path.is_file() and path.name not in named:
                path.unlink()

    def _change(self, **fields: Any) -> None:
        self.record = msgspec.structs.replace(self.record, **fields)
        write_private(self._file, msgspec.json.encode(self.record))


class NodeCode:
    """Brings one node's modules and packages to what is wanted, and says whether they are."""

    def __init__(
        self,
        code: Code,
        lease_id: str,
        *,
        bring_blob: Callable[[str], Awaitable[None]],
        order: Callable[[Any], None],
        install: Callable[[tuple[PackagePin, ...], tuple[str, ...]], Awaitable[None]],
        is_reached: Callable[[], bool],
    ) -> None:
        self._code = code
        self._lease_id = lease_id
        self._bring_blob = bring_blob
        self._order = order
        self._install = install
        self._is_reached = is_reached
        self._there: str | None = None
        self._packages: tuple[PackagePin, ...] = ()
        self._agent_ms = 0
        self._taking: asyncio.Future[CodeTaken] | None = None
        self._error = ""
        self._trouble = ""
        self._note = ""
        self._wake = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def is_current(self) -> bool:
        """Whether what runs on the node now finds the user's own modules as they are wanted."""
        return self._has_files and self._has_packages

    @property
    def error(self) -> str:
        """Why the node cannot have them; empty while it has them, or is being brought there."""
        return self._error

    @property
    def trouble(self) -> str:
        """Why it has taken more than one try so far; empty when it has not."""
        return self._trouble

    @property
    def _has_files(self) -> bool:
        return self._code.tree == (self._there or EMPTY)

    @property
    def _has_packages(self) -> bool:
        return self._packages == self._code.record.packages

    def view(self) -> CodeNode:
        """How it is."""
        state: Literal["there", "waiting", "failed"] = (
            "failed" if self._error else "there" if self.is_current else "waiting"
        )
        note = self._note or self._trouble
        return CodeNode(lease_id=self._lease_id, state=state, error=self._error[:2000], note=note[:500])

    def hear(self, report: AgentReady | CodeTaken) -> None:
        """What the agent says of it. A new contact begins anew with what the agent has then."""
        if isinstance(report, AgentReady):
            self._there = _hash_in(report.code)
            if report.started_ms != self._agent_ms:
                # What it had of packages may be gone with the folder of a former agent: it is looked at anew.
                self._agent_ms, self._packages = report.started_ms, ()
            self._error = self._trouble = ""
            if self._taking is not None and not self._taking.done():
                self._taking.set_exception(Unreachable("the agent was met anew"))
                self._taking.exception()
            self._wake.set()
            return
        self._there = _hash_in(report.tree)
        self._note = report.note
        if self._taking is not None and not self._taking.done():
            self._taking.set_result(report)

    def look_again(self) -> None:
        """Something else is wanted, or the same once more."""
        self._error = self._trouble = self._note = ""
        self._wake.set()

    async def run(self) -> None:
        """Compare and bring, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._there is not None and not self.is_current and not self._error:
                try:
                    await self._bring()
                    self._trouble = ""
                except (Unreachable, TimeoutError) as error:
                    self._trouble = str(error)
                    await asyncio.sleep(RETRY_S)
                except (GpuMarketError, OSError) as error:
                    self._error = str(error)
                    logger.warning("node %s: %s", self._lease_id, self._error)
                except Exception as error:
                    # An error of ours must be told to whoever waits, and must not end this loop.
                    self._error = f"an error in the cluster process: {error!r}"
                    logger.exception("the code of node %s could not be brought", self._lease_id)
            self._tell()

    async def settled(self) -> CodeNode:
        """Wait until the node has what is wanted, or cannot have it, or is not to be reached."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not self.is_current and not self._error:
            patience_s = REACHED_PATIENCE_S if self._is_reached() else SILENT_PATIENCE_S
            if loop.time() - began > patience_s:
                break
            with contextlib.suppress(TimeoutError):  # not `wait_for`, which may swallow that this task is cancelled
                async with asyncio.timeout(1.0):
                    await self._news.wait()
        return self.view()

    async def _bring(self) -> None:
        if not self._has_packages:
            wanted = self._code.record.packages
            await self._install(wanted, self._code.record.where)
            self._packages = wanted
        if self._has_files:
            return
        if not self._there:
            raise NodeError("the agent on the node is older than this version; rent a new node to sync modules")
        report = await self._sent(self._there)
        if report.error:
            report = await self._sent(EMPTY)  # what it should have had was not as expected: everything goes
        if report.error:
            raise BadRequest(report.error[:1000])

    async def _sent(self, there: str) -> CodeTaken:
        archive, size = await asyncio.to_thread(self._packed, there)
        limit_s = ANSWER_S + size / SLOWEST_BYTES_S
        await self._within(self._bring_blob(archive), limit_s, "has not taken the archive with your modules")
        self._taking = asyncio.get_running_loop().create_future()
        self._order(self._code.order(archive))
        return await self._within(self._taking, ANSWER_S, "has not said whether it has your modules")

    def _packed(self, there: str) -> tuple[str, int]:
        archive = self._code.archive(there)
        return archive, self._code.size_of(archive)

    async def _within(self, work: Awaitable[T], limit_s: float, silence: str) -> T:
        """What comes of it. Only the time counts in which the node can be reached: orders wait out an outage.

        Raises:
            Unreachable: the agent has not done it in time; says what it has not done.
        """
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        waited_s = 0.0
        try:
            while not task.done():
                if waited_s >= limit_s:
                    raise Unreachable(f"the agent on the node {silence} for {limit_s:.0f} s; it is asked again")
                began_s = loop.time()
                await asyncio.wait({task}, timeout=min(1.0, limit_s))
                waited_s += loop.time() - began_s if self._is_reached() else 0.0
            return task.result()
        finally:
            task.cancel()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _hash_in(text: str) -> str:
    """A node's word for what it has, if it looks like one: it names a file of ours."""
    return text if SHA256.fullmatch(text) else ""


def view_of(code: Code, nodes: list[CodeNode]) -> CodeView:
    """Everything, as doors see it."""
    record = code.record
    return CodeView(files=record.files, origins=record.origins, packages=record.packages, nodes=tuple(nodes))
