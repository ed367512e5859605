"""Bytes from a node are parsed in a child process first; the parent only reads its verdict.

The child has no environment, no network where the system allows that, one open file, and limits on memory, time and
writing. If it dies, that is the verdict.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Self

import msgspec

from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.errors import CodecError

_PACKAGE_PARENT = str(Path(__file__).resolve().parents[2])
_START = "import sys; sys.path.insert(0, sys.argv[1]); from jupyter_gpumarket.codecs.child import main; main()"
_MAX_VERDICT_BYTES = 2000
# Said to the child when the file is whole.
GO = b"g"


def verify_in_child(codec: str, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Decode a file in a child process with limits, and throw the value away. Blocks; call it in a thread.

    Raises:
        CodecError: the bytes are not what the codec says, or reading them took the child's life or time.
    """
    with Checker(codec, path, limits) as checker:
        checker.check()


class Checker:
    """A child process that is ready to look at a file: it can be started while the file is still being written.

    Raises:
        CodecError: the file cannot be opened.
    """

    def __init__(self, codec: str, path: Path, limits: Limits = DEFAULT_LIMITS) -> None:
        self._codec = codec
        self._limits = limits
        try:
            self._source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise CodecError(f"the result cannot be read: {error.strerror}") from None
        waiting, self._go = os.pipe()
        try:
            self._child = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _START,
                    _PACKAGE_PARENT,
                    codec,
                    msgspec.json.encode(limits).decode("ascii"),
                ],
                stdin=self._source,
                stdout=subprocess.PIPE,
                stderr=waiting,  # where it waits for its turn; it has nothing to say there
                env=_environment(),
                cwd="/",
                close_fds=True,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._source)
            os.close(self._go)
            raise
        finally:
            os.close(waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Have the child look at the file, which is whole now. Blocks.

        Raises:
            CodecError: as `verify_in_child`.
        """
        size = os.fstat(self._source).st_size
        if size > self._limits.max_bytes:
            raise CodecError(f"a result of {size:,} bytes; at most {self._limits.max_bytes:,} are accepted")
        exit_code, verdict = self._verdict()
        if exit_code == 0 and verdict == "sound":
            return
        if exit_code == 1 and verdict.startswith("refused: "):
            raise CodecError(verdict.removeprefix("refused: "))
        how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        raise CodecError(
            f"the result was refused: reading it as {self._codec[:40]!r} ended the checking process ({how}), which has "
            f"{self._limits.memory_bytes:,} bytes of memory and {self._limits.timeout_s:g} s"
        )

    def close(self) -> None:
        """End the child, whatever it does."""
        if self._child.poll() is None:
            self._child.kill()
        self._child.wait()
        assert self._child.stdout is not None
        self._child.stdout.close()
        for descriptor in (self._source, self._go):
            if descriptor >= 0:
                os.close(descriptor)
        self._source = self._go = -1

    def _verdict(self) -> tuple[int, str]:
        assert self._child.stdout is not None
        timer = threading.Timer(self._limits.timeout_s, self._child.kill)
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended: that is a verdict too
                os.write(self._go, GO)
            verdict = self._child.stdout.read(_MAX_VERDICT_BYTES)
            self._child.stdout.close()  # one that goes on talking meets a closed pipe
            exit_code = self._child.wait()
        finally:
            timer.cancel()
        text = verdict.decode("utf-8", "replace").split("\n")[0]
        return exit_code, "".join(c if c.isprintable() else "�" for c in text)


def _environment() -> dict[str, str]:
    """Nothing of ours; one thread for each library, so that their pools do not count against the memory limit."""
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(threads, "1") | {"LANG": "C.UTF-8", "ARROW_DEFAULT_MEMORY_POOL": "system"}
