"""numpy arrays as npy files: plain numbers, booleans, text, bytes and times; never objects, never structures.

The header is checked against the bytes that are there before anything is allocated.
"""

from __future__ import annotations

import io
import math
import mmap
import re
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.errors import CodecError

if TYPE_CHECKING:
    import numpy as np

MAX_DIMENSIONS = 32
MAX_HEADER_BYTES = 10_000
PIECE_BYTES = 1024 * 1024
_HEADER = re.compile(
    rb"\{'descr': '([<>|][a-zA-Z]\d{1,9}(?:\[\d{0,9}[a-z]{1,2}\])?)', 'fortran_order': (True|False), "
    rb"'shape': \(((?:\d{1,19}, ?)*(?:\d{1,19})?)\), \} *\n"
)
_ITEM_SIZES = {"b": {1}, "i": {1, 2, 4, 8}, "u": {1, 2, 4, 8}, "f": {2, 4, 8}, "c": {8, 16}, "m": {8}, "M": {8}}


def is_array(value: Any) -> bool:
    """Whether it is a numpy array (without importing numpy for it)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def python_scalar(value: Any) -> Any:
    """A numpy number, text or truth value as the Python one; anything else as it is."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic):
        return value
    if isinstance(value, numpy.datetime64 | numpy.timedelta64 | numpy.void | numpy.longdouble | numpy.clongdouble):
        return value
    return value.item()


def dumps(value: Any) -> bytes:
    """An array as an npy file.

    Raises:
        CodecError: an array of objects or structures, or a subclass that carries more than its numbers.
    """
    buffer = io.BytesIO()
    dump(value, buffer)
    return buffer.getvalue()


def dump(value: Any, file: IO[bytes]) -> None:
    """An array into an npy file, without a copy of it in memory.

    Raises:
        CodecError: as `dumps`.
    """
    import numpy as np

    _check_array(value)
    np.lib.format.write_array(file, np.asarray(value), allow_pickle=False)


def pieces(value: Any) -> Iterator[bytes]:
    """An array's npy file in pieces. Each is a copy, so that whoever hashes and writes it does both with the same bytes
    even while another thread changes the array.

    Raises:
        CodecError: as `dumps`.
    """
    import numpy as np

    _check_array(value)
    array = np.asarray(value)
    by_rows = array if array.flags.c_contiguous else array.T
    if not by_rows.flags.c_contiguous or not array.dtype.itemsize:
        yield dumps(value)
        return
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    yield header.getvalue()
    items = by_rows.reshape(-1).view(np.uint8)
    for at in range(0, len(items), PIECE_BYTES):
        yield items[at : at + PIECE_BYTES].tobytes()


def _check_array(value: Any) -> None:
    import numpy as np

    if type(value) not in (np.ndarray, np.memmap):
        raise CodecError(f"a numpy {type(value).__name__} has no codec; return np.asarray(...) of it")
    _check_dtype(value.dtype)


def loads(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray[Any, Any]:
    """The array of an npy file, writable and in its own memory.

    Raises:
        CodecError: not npy, objects inside, or a shape that the bytes do not fill exactly.
    """
    try:
        found = _view(data, limits).copy(order="K")
    except MemoryError as error:
        raise CodecError(f"an npy file that cannot be read: {error}") from None
    check_items(found)
    return found


def check(data: bytes | mmap.mmap, limits: Limits = DEFAULT_LIMITS) -> None:
    """Everything that `loads` looks at, without a copy of the items.

    Raises:
        CodecError: as `loads`.
    """
    check_items(_view(data, limits))


def _view(data: bytes | mmap.mmap, limits: Limits) -> np.ndarray[Any, Any]:
    import numpy as np

    if len(data) > limits.max_bytes:
        raise CodecError(f"an array of {len(data):,} bytes; at most {limits.max_bytes:,} are accepted")
    shape, fortran, dtype, offset = _header(data)
    _check_dtype(dtype)
    if len(shape) > MAX_DIMENSIONS:
        raise CodecError(f"an npy file of {len(shape)} dimensions; at most {MAX_DIMENSIONS} are accepted")
    expected = math.prod(shape) * dtype.itemsize
    if expected != len(data) - offset:
        raise CodecError(f"an npy file that announces {expected:,} bytes and has {len(data) - offset:,}")
    try:
        flat = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=offset)
        return flat.reshape(shape, order="F" if fortran else "C")
    except (ValueError, MemoryError, OverflowError) as error:
        raise CodecError(f"an npy file that cannot be read: {error}") from None


def check_items(array: np.ndarray[Any, Any]) -> None:
    """Bit patterns that a dtype does not allow but numpy would hand on.

    Raises:
        CodecError: a boolean that is neither 0 nor 1, or text beyond Unicode.
    """
    import numpy as np

    if array.size == 0 or array.dtype.itemsize == 0:
        return
    if array.dtype.kind == "b" and np.ascontiguousarray(array).view(np.uint8).max() > 1:
        raise CodecError("an array of booleans with a value that is neither 0 nor 1")
    if array.dtype.kind == "U":
        codes = np.ascontiguousarray(array).reshape(-1).view(np.dtype(np.uint32).newbyteorder(array.dtype.byteorder))
        if codes.max() > 0x10FFFF or ((codes >= 0xD800) & (codes <= 0xDFFF)).any():
            raise CodecError("an array of text with characters that are not Unicode")


def _header(data: bytes | mmap.mmap) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """The header as numpy writes it for plain dtypes, and where the items begin. Nothing else is evaluated."""
    import numpy as np

    start = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12}.get(data[:8])
    if start is None or len(data) < start:
        raise CodecError("not an npy file of version 1.0 or 2.0")
    offset = start + int.from_bytes(data[8:start], "little")
    found = _HEADER.fullmatch(data[start : min(offset, start + MAX_HEADER_BYTES)])
    if found is None or offset > len(data):
        raise CodecError("an npy file of objects, of structures, or with a damaged header")
    descr, fortran, shape = (part.decode("ascii") for part in found.groups())
    try:
        return tuple(int(n) for n in shape.split(",") if n.strip()), fortran == "True", np.dtype(descr), offset
    except (ValueError, TypeError) as error:
        raise CodecError(f"not an npy file: {str(error)[:200]}") from None


def _check_dtype(dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise CodecError("an array of Python objects has no codec; return a list, or an array of numbers or text")
    if dtype.fields or dtype.subdtype:
        raise CodecError("an array of structures has no codec; return a table, or one array for each field")
    if dtype.kind in "SU":
        return
    if dtype.itemsize not in _ITEM_SIZES.get(dtype.kind, set()):
        raise CodecError(f"an array of {dtype} has no codec; convert it, for example with .astype('float64')")
