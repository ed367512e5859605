"""The user's own modules on a node: which files there are to be, by content, and what the agent says of it.

An archive holds files under their SHA-256, never under a path, and a path counts only when it is in the list and looks
harmless; so no name in an archive can lead anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import msgspec

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import CodeFile
from jupyter_gpumarket.wire.messages import Message

MAX_FILES = 10_000
MAX_TOTAL_BYTES = 256 * 1024**2
MAX_PATH_CHARS = 400
# The words for a folder with nothing in it: what a node has before anything was synced.
EMPTY = hashlib.sha256(b"").hexdigest()
SHA256 = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}")


class TakeCode(Message, frozen=True, kw_only=True, tag="take_code"):
    """Have exactly these files in the lease's code folder. `archive` is the blob with those that the node lacks."""

    tree: str
    files: tuple[CodeFile, ...]
    archive: str


class CodeTaken(Message, frozen=True, kw_only=True, tag="code_taken"):
    """What the node has now; `error`: why not what was asked for. `note`: what the user should know of it."""

    tree: str
    error: str = ""
    note: str = ""


def tree_of(files: Iterable[CodeFile]) -> str:
    """One hash for a whole list of files, whatever its order."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.sha256} {file.path}\n".encode())
    return digest.hexdigest()


def check_files(files: Iterable[CodeFile]) -> None:
    """Refuse what could lead out of the folder, or is too much.

    Raises:
        BadRequest: names the first file that will not do.
    """
    paths: set[str] = set()
    folders: set[str] = set()
    total = 0
    for file in files:
        check_path(file.path)
        if not SHA256.fullmatch(file.sha256) or file.size < 0:
            raise BadRequest(f"files: {file.path[:100]!r} has no sound hash or size")
        if file.path in paths:
            raise BadRequest(f"files: {file.path[:100]!r} stands there twice")
        paths.add(file.path)
        parts = file.path.split("/")
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        total += file.size
    if both := sorted(paths & folders):
        raise BadRequest(f"files: {both[0][:100]!r} is a file and a folder at once")
    if len(paths) > MAX_FILES or total > MAX_TOTAL_BYTES:
        raise BadRequest(
            f"files: {len(paths)} files with {total:,} bytes are more than the {MAX_FILES} with {MAX_TOTAL_BYTES:,} "
            "that can be synced; leave data out by a .gpumarketignore, and bring it with gm.put"
        )


def check_path(path: str) -> None:
    """Refuse everything but plain relative paths with forward slashes.

    Raises:
        BadRequest: it is none.
    """
    parts = path.split("/")
    sound = len(path) <= MAX_PATH_CHARS and all(_PART.fullmatch(part) and part not in (".", "..") for part in parts)
    if not sound or ":" in parts[0]:
        raise BadRequest(f"files: {path[:100]!r} is not a plain path inside of a folder")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"files: {path[:100]!r} is not text") from None


def decoded(data: bytes) -> tuple[CodeFile, ...]:
    """A list of files as it was written to a disk.

    Raises:
        BadRequest: it is none.
    """
    try:
        return msgspec.json.decode(data, type=tuple[CodeFile, ...])
    except msgspec.MsgspecError as error:
        raise BadRequest(f"files: {error}") from None
