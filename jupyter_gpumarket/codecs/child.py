"""The checking process: decodes what lies on its standard input, says one line, and ends.

Started by `verify` only, maybe before the file is whole. Everything it may need is imported first, and it waits for the
word on its standard error; then it gives up what it can (memory, time, files, network, writing), and only then it looks
at the bytes.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import mmap
import os
import resource
import sys
from typing import Any, NoReturn

import msgspec

from jupyter_gpumarket.codecs.limits import Limits
from jupyter_gpumarket.errors import CodecError

_LIBRARIES: dict[str, tuple[str, ...]] = {"npy": ("numpy",), "safetensors": ("numpy",), "json": ("numpy",)}
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_NEVER = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.")


def main() -> None:
    """Arguments: package path (already used), codec, limits as JSON."""
    codec, limits = sys.argv[2], msgspec.json.decode(sys.argv[3], type=Limits)
    from jupyter_gpumarket import codecs

    _import_libraries(codec)
    _warm_up(codec)
    if not os.read(2, 1):
        os._exit(1)  # nobody waits for a verdict any more
    mapped = _mapped(codec)
    _give_up(limits)
    try:
        codecs.check(codec, _read(limits) if mapped is None else mapped, limits)
    except CodecError as error:
        _say(f"refused: {error}", 1)
    except MemoryError:
        _say("refused: reading it takes more memory than is allowed", 1)
    except Exception as error:  # noqa: BLE001 - whatever a library raises over hostile bytes, the answer is no
        _say(f"refused: {type(error).__name__}: {error}", 1)
    _say("sound", 0)


def _mapped(codec: str) -> mmap.mmap | None:
    """An array's file, to be looked at where it lies instead of in a copy. Later no file can be mapped any more."""
    with contextlib.suppress(OSError, ValueError):
        if codec == "npy":
            return mmap.mmap(0, 0, access=mmap.ACCESS_READ)
    return None


def _read(limits: Limits) -> bytes:
    with open(0, "rb", closefd=False) as file:
        return file.read(limits.max_bytes + 1)


def _import_libraries(codec: str) -> None:
    names = _LIBRARIES.get(codec, ("numpy", "pyarrow", "pyarrow.compute"))
    if "+" in codec:
        names += (codec.partition("+")[2].partition(".")[0],)
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def _warm_up(codec: str) -> None:
    """Libraries load more on first use; afterwards no file can be opened."""
    if not codec.startswith("arrow") or "pyarrow" not in sys.modules:
        return
    from jupyter_gpumarket.codecs import tables

    with contextlib.suppress(CodecError):
        tables.loads(tables.dumps(sys.modules["pyarrow"].table({_: [1] for _ in "ab"}), "arrow"), codec)


def _give_up(limits: Limits) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_NPROC": 0,
        "RLIMIT_CPU": limits.cpu_s,
        "RLIMIT_AS": _address_space() + limits.memory_bytes,
    }
    for name, value in wanted.items():
        with contextlib.suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))
    sys.addaudithook(_refuse)


def _address_space() -> int:
    """Bytes mapped now: the interpreter and its libraries, before any data."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 4 * 1024**3


def _refuse(event: str, _arguments: tuple[Any, ...]) -> None:
    if event.startswith(_NEVER):
        raise RuntimeError(f"{event} while a result was being read")


def _say(line: str, exit_code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(1, (" ".join(line.split())[:1500] + "\n").encode("utf-8", "replace"))
    os._exit(exit_code)
