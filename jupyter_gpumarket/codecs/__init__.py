"""Values in and out of a node, by a closed set of codecs that never run what they read.

    json                 numbers, text, lists, dicts and their kin, see `tagged`
    npy                  one numpy array or torch tensor
    safetensors          a dict of names to arrays or tensors, such as a state_dict
    arrow, arrow+polars, arrow+polars.series, arrow+pandas, arrow+pandas.series
                         tables and columns, which come back as what they were

Both sides use it: the agent encodes results on the node, the user's side checks them in a child process
(`verify_in_child`) and then decodes them. Inputs are the user's own bytes, so they may also go as cloudpickle, which
only the agent opens.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import cloudpickle

from jupyter_gpumarket.codecs import arrays, tables, tagged, tensors
from jupyter_gpumarket.codecs.hashing import copy_hashed
from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, Limits
from jupyter_gpumarket.codecs.verify import Checker, verify_in_child
from jupyter_gpumarket.errors import CodecError
from jupyter_gpumarket.models import Record

__all__ = [
    "CLOUDPICKLE",
    "CODECS",
    "DEFAULT_LIMITS",
    "Checker",
    "Encoded",
    "Limits",
    "Written",
    "check",
    "decode",
    "encode",
    "encode_input",
    "encode_into",
    "is_plain_array",
    "verify_in_child",
]

CODECS = frozenset({"json", "npy", "safetensors", *tables.TAGS})
CLOUDPICKLE = "cloudpickle"

_WAYS_OUT = (
    "Return something that has a codec: numbers, text, lists and dicts as they are; an array with .tolist() or "
    "np.asarray(...); a model with model.state_dict(); a table as a polars or pandas frame (.collect(), .to_frame())."
)


class Encoded(Record, frozen=True, kw_only=True):
    """A value as bytes, and the tag of the codec that reads them."""

    codec: str
    data: bytes


class Written(Record, frozen=True, kw_only=True):
    """A value in a file: the codec's tag, how many bytes, and their SHA-256."""

    codec: str
    size: int
    sha256: str


def encode(value: Any) -> Encoded:
    """A value as bytes that can be read without running anything.

    Raises:
        CodecError: no codec takes it; the message names the type and the way out.
    """
    try:
        return _encode(value)
    except CodecError as error:
        raise CodecError(f"{error}. {_WAYS_OUT}") from None


def encode_into(value: Any, path: Path) -> Written:
    """Like `encode`, into a file, hashed on its way. A large array is not held in memory a second time.

    Raises:
        CodecError: as `encode`. OSError: the disk.
    """
    is_array = tensors.is_tensor(value) or arrays.is_array(value)
    if is_array:
        codec, pieces = "npy", arrays.pieces(tensors.as_array(value))
    else:
        encoded = encode(value)
        codec, pieces = encoded.codec, iter([encoded.data])
    try:
        with path.open("wb") as file:
            size, sha256 = copy_hashed(pieces, file)
    except CodecError as error:
        raise CodecError(f"{error}. {_WAYS_OUT}") from None
    return Written(codec=codec, size=size, sha256=sha256)


def encode_input(value: Any) -> Encoded:
    """One of the user's own values for a node: plain text, numbers and arrays by codec, the rest by cloudpickle.

    Raises:
        CodecError: cloudpickle cannot take it either; the message says why.
    """
    if value is None or type(value) in (str, int, float, bool, bytes) or is_plain_array(value):
        try:
            return _encode(value)
        except CodecError:
            pass  # a very large integer, text with a lone surrogate: cloudpickle keeps those
    try:
        return Encoded(codec=CLOUDPICKLE, data=cloudpickle.dumps(value))
    except Exception as error:  # noqa: BLE001 - an object's own __reduce__ may raise anything
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CodecError(f"a value of type {name} cannot be sent to the node: {str(error)[:300]}") from None


def decode(codec: str, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The value of what `encode` wrote. Never unpickles. For bytes from a node, `verify_in_child` comes first.

    Raises:
        CodecError: an unknown codec, or bytes that are not what it says.
    """
    if codec == "json":
        return tagged.loads(data, limits)
    if codec == "npy":
        return arrays.loads(data, limits)
    if codec == "safetensors":
        return tensors.loads(data, limits)
    if codec in tables.TAGS:
        return tables.loads(data, codec, limits)
    raise CodecError(f"a result by the codec {codec[:40]!r} is not opened: only {', '.join(sorted(CODECS))} are")


def check(codec: str, data: bytes | mmap.mmap, limits: Limits = DEFAULT_LIMITS) -> None:
    """Whether `decode` would take these bytes; arrays are looked at where they lie.

    Raises:
        CodecError: as `decode`.
    """
    if codec == "npy":
        arrays.check(data, limits)
    else:
        decode(codec, bytes(data), limits)


def _encode(value: Any) -> Encoded:
    tag = tables.tag_of(value)
    if tag is not None:
        return Encoded(codec=tag, data=tables.dumps(value, tag))
    if tensors.is_tensor(value) or arrays.is_array(value):
        return Encoded(codec="npy", data=arrays.dumps(tensors.as_array(value)))
    if tensors.fits(value):
        return Encoded(codec="safetensors", data=tensors.dumps(value))
    return Encoded(codec="json", data=tagged.dumps(value))


def is_plain_array(value: Any) -> bool:
    """Whether it is an array of plain numbers, times or text, and no subclass with more to it."""
    if not arrays.is_array(value):
        return False
    import numpy as np

    return type(value) is np.ndarray and not value.dtype.hasobject
