"""Named tensors (model weights) in the safetensors format, read and written without running code.

The format is a length, a JSON header and the bytes, so it is read here by the strict JSON reader and numpy: a node then
needs no library for it, and nothing is allocated before the header adds up. What torch calls bfloat16 is widened to
float32, which loses nothing. Values arrive as numpy arrays.
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from jupyter_gpumarket.codecs import strict_json
from jupyter_gpumarket.codecs.arrays import MAX_DIMENSIONS, check_items, is_array
from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, MIB, Limits
from jupyter_gpumarket.errors import CodecError

if TYPE_CHECKING:
    import numpy as np

MAX_HEADER_BYTES = MIB
_DTYPES = {
    "BOOL": "?",
    "U8": "|u1",
    "I8": "|i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
    "C64": "<c8",
}
_NAMES = {("b", 1): "BOOL"} | {
    (kind, size): f"{letter}{size * 8}"
    for kind, letter, sizes in (("u", "U", (1, 2, 4, 8)), ("i", "I", (1, 2, 4, 8)), ("f", "F", (2, 4, 8)))
    for size in sizes
}


def is_tensor(value: Any) -> bool:
    """Whether it is a torch tensor (without importing torch for it)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def as_array(value: Any) -> Any:
    """A torch tensor as a numpy array on the CPU; an array as it is.

    Raises:
        CodecError: a sparse or quantised tensor, which numpy cannot hold.
    """
    if not is_tensor(value):
        return value
    import torch

    try:
        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            tensor = tensor.float()
        return tensor.contiguous().numpy()
    except (TypeError, RuntimeError) as error:
        raise CodecError(f"a torch tensor that numpy cannot hold ({error}); return .to_dense() or .float()") from None


def fits(value: Any) -> bool:
    """Whether it is a non-empty dict of names to tensors or plain numeric arrays."""
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(is_tensor(v) or (is_array(v) and (v.dtype.kind, v.dtype.itemsize) in _NAMES) for v in value.values())
    )


def dumps(value: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Named tensors as a safetensors file.

    Raises:
        CodecError: a tensor without a numpy equivalent, or too many of them.
    """
    import numpy as np

    header: dict[str, Any] = {}
    parts: list[bytes] = []
    position = 0
    for name, item in value.items():
        array = np.asarray(as_array(item))
        label = _NAMES.get((array.dtype.kind, array.dtype.itemsize))
        if label is None:
            raise CodecError(f"the tensor {name!r} is of {array.dtype}, which has no codec; convert it first")
        body = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="C")
        header[name] = {"dtype": label, "shape": list(array.shape), "data_offsets": [position, position + len(body)]}
        position += len(body)
        parts.append(body)
    text = json.dumps(header, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES or len(header) > limits.max_tensors:
        raise CodecError(f"{len(header):,} tensors are more than one result may hold; return them in parts")
    return b"".join((struct.pack("<Q", len(text)), text, *parts))


def loads(data: bytes, limits: Limits = DEFAULT_LIMITS) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of a safetensors file, as writable numpy arrays.

    Raises:
        CodecError: the header does not add up to exactly the bytes that are there.
    """
    import numpy as np

    if len(data) > limits.max_bytes:
        raise CodecError(f"tensors of {len(data):,} bytes; at most {limits.max_bytes:,} are accepted")
    header, start = _header(data, limits)
    found: dict[str, np.ndarray[Any, Any]] = {}
    position = 0
    for name, entry in sorted(header.items(), key=_by_offset):
        dtype, shape, begin, end = _entry(name, entry)
        if begin != position or end - begin != math.prod(shape) * np.dtype(dtype).itemsize:
            raise CodecError(f"the tensor {name[:80]!r} overlaps another, leaves a gap, or is not as long as its shape")
        position = end
        if start + end > len(data):
            raise CodecError(f"the tensor {name[:80]!r} reaches beyond the end")
        array = np.frombuffer(data, dtype=dtype, count=math.prod(shape), offset=start + begin).reshape(shape).copy()
        check_items(array)
        found[name] = array
    if start + position != len(data):
        raise CodecError("bytes after the last tensor")
    return {name: found[name] for name in header}


def _header(data: bytes, limits: Limits) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise CodecError("not a safetensors file: too short")
    (length,) = struct.unpack_from("<Q", data)
    if length > MAX_HEADER_BYTES or 8 + length > len(data):
        raise CodecError(f"a safetensors header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are accepted")
    header = strict_json.loads(data[8 : 8 + length], limits)
    if not isinstance(header, dict):
        raise CodecError("a safetensors header that is not an object")
    header.pop("__metadata__", None)
    if len(header) > limits.max_tensors:
        raise CodecError(f"{len(header):,} tensors; at most {limits.max_tensors:,} are accepted")
    return header, 8 + length


def _entry(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CodecError(f"the tensor {name[:80]!r} is not described as the format asks")
    label, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(label, str) or label not in _DTYPES:
        raise CodecError(f"the tensor {name[:80]!r} is of the type {str(label)[:20]!r}, which numpy does not have")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS or math.prod(shape) > 2**62:
        raise CodecError(f"the tensor {name[:80]!r} has an impossible shape")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise CodecError(f"the tensor {name[:80]!r} has impossible offsets")
    return _DTYPES[label], tuple(shape), offsets[0], offsets[1]


def _whole_numbers(items: Any) -> bool:
    return isinstance(items, list) and all(type(n) is int and 0 <= n < 2**62 for n in items)


def _by_offset(item: tuple[str, Any]) -> tuple[int, int]:
    _, _, begin, end = _entry(*item)
    return begin, end
