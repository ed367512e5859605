"""Bytes from a node are parsed in a child process first; the parent only reads its verdict.

The child has no environment, no network where the system allows that, one open file, and limits on memory, time and
writing. If it dies, that is the verdict.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec

from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.errors import CodecError

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from jupyter_gpumarket.codecs.child import main; main()"
_MAX_VERDICT_BYTES = 2000


def verify_in_child(codec: str, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Decode a file in a child process with limits, and throw the value away. Blocks; call it in a thread.

    Raises:
        CodecError: the bytes are not what the codec says, or reading them took the child's life or time.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CodecError(f"the result cannot be read: {error.strerror}") from None
    try:
        size = os.fstat(source).st_size
        if size > limits.max_bytes:
            raise CodecError(f"a result of {size:,} bytes; at most {limits.max_bytes:,} are accepted")
        exit_code, verdict = _run_child(codec, source, limits)
    finally:
        os.close(source)
    if exit_code == 0 and verdict == "sound":
        return
    if exit_code == 1 and verdict.startswith("refused: "):
        raise CodecError(verdict.removeprefix("refused: "))
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    raise CodecError(
        f"the result was refused: reading it as {codec[:40]!r} ended the checking process ({how}), which has "
        f"{limits.memory_bytes:,} bytes of memory and {limits.timeout_s:g} s"
    )


def _run_child(codec: str, source: int, limits: Limits) -> tuple[int, str]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-c", _START, _PACKAGE_PARENT, codec, msgspec.json.encode(limits).decode("ascii")],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=_environment(),
        cwd="/",
        close_fds=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    timer = threading.Timer(limits.timeout_s, child.kill)
    timer.start()
    try:
        verdict = child.stdout.read(_MAX_VERDICT_BYTES)
        child.stdout.close()  # one that goes on talking meets a closed pipe
        exit_code = child.wait()
    finally:
        timer.cancel()
        if child.poll() is None:
            child.kill()
            child.wait()
    text = verdict.decode("utf-8", "replace").split("\n")[0]
    return exit_code, "".join(c if c.isprintable() else "�" for c in text)


def _environment() -> dict[str, str]:
    """Nothing of ours; one thread for each library, so that their pools do not count against the memory limit."""
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(threads, "1") | {"LANG": "C.UTF-8", "ARROW_DEFAULT_MEMORY_POOL": "system"}
