"""Tables and columns as an Arrow IPC stream; the tag says what they were: polars, pandas or pyarrow.

Arrow checks the structure of a stream, not its contents, so everything is validated in full before use. Types come
from an allow-list: no extension types, no run-end encoding, no unions. What a stream holds is counted as what it
expands to, and an uncompressed stream cannot hold more than its own bytes, so compression and overlapping buffers
show. When the library that the tag names is not installed where it is read, a pyarrow table comes instead.
"""

from __future__ import annotations

import importlib
import io
import re
import sys
from collections.abc import Callable
from typing import Any

from jupyter_gpumarket.codecs import strict_json
from jupyter_gpumarket.codecs.limits import DEFAULT_LIMITS, MIB, Limits
from jupyter_gpumarket.errors import CodecError

TAGS = ("arrow", "arrow+polars", "arrow+polars.series", "arrow+pandas", "arrow+pandas.series")
_NO_NAME = "__no_name__"
_KINDS: tuple[tuple[str, str, str], ...] = (
    ("arrow+polars", "polars", "DataFrame"),
    ("arrow+polars.series", "polars", "Series"),
    ("arrow+pandas", "pandas", "DataFrame"),
    ("arrow+pandas.series", "pandas", "Series"),
    ("arrow", "pyarrow", "Table"),
    ("arrow", "pyarrow", "RecordBatch"),
)


def tag_of(value: Any) -> str | None:
    """The codec of a table or column, or None (without importing any library for it)."""
    for tag, library, kind in _KINDS:
        module = sys.modules.get(library)
        if module is not None and isinstance(value, getattr(module, kind, ())):
            return tag
    return None


def dumps(value: Any, tag: str) -> bytes:
    """A table or column as an Arrow IPC stream.

    Raises:
        CodecError: a column of Python objects, or pyarrow is missing where it is needed.
    """
    try:
        return _WRITERS[tag](value)
    except CodecError:
        raise
    except Exception as error:  # noqa: BLE001 - each library has its own family of errors for a column it cannot write
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise CodecError(f"the table cannot be written as Arrow: {reason}; convert that column first") from None


def loads(data: bytes, tag: str, limits: Limits = DEFAULT_LIMITS) -> Any:
    """The table of an Arrow IPC stream, as what the tag says.

    Raises:
        CodecError: damaged, of a type that is not allowed, or larger than its limits once expanded.
    """
    pa = _pyarrow()
    if len(data) > limits.max_bytes:
        raise CodecError(f"a table of {len(data):,} bytes; at most {limits.max_bytes:,} are accepted")
    try:
        table = _read(pa, data, limits)
        return _READERS[tag](table)
    except (pa.ArrowException, ValueError, TypeError, KeyError, OSError, OverflowError, MemoryError) as error:
        raise CodecError(f"not the table that was announced: {str(error)[:300]}") from None


def _read(pa: Any, data: bytes, limits: Limits) -> Any:
    options = pa.ipc.IpcReadOptions(use_threads=False)
    source = pa.BufferReader(data)
    with pa.ipc.open_stream(source, options=options) as stream:
        _check_schema(pa, stream.schema, limits)
        batches: list[Any] = []
        rows = logical = 0
        for batch in stream:
            batch.validate(full=True)
            rows += batch.num_rows
            logical += sum(_logical_bytes(pa, column) for column in batch.columns)
            if rows > limits.max_rows or logical > limits.logical_bytes:
                raise CodecError(f"a table of {rows:,} rows that would take more than {limits.logical_bytes:,} bytes")
            if sum(column.nbytes for column in batch.columns) > len(data):
                raise CodecError("a table that is compressed, or whose columns share their bytes")
            batches.append(batch)
        if data[source.tell() :].strip(b"\0"):
            raise CodecError("bytes after the end of the table")
        table = pa.Table.from_batches(batches, schema=stream.schema)
    table.validate(full=True)
    return table


def _check_schema(pa: Any, schema: Any, limits: Limits) -> None:
    if len(schema) > limits.max_columns:
        raise CodecError(f"a table of {len(schema):,} columns; at most {limits.max_columns:,} are accepted")
    for field in schema:
        _check_field(pa, field, depth=16)
    for key, text in (schema.metadata or {}).items():
        if key != b"pandas" or len(text) > MIB:
            raise CodecError(f"a table with metadata that do not belong there: {key[:40]!r}")
        strict_json.loads(text, limits)


def _check_field(pa: Any, field: Any, depth: int) -> None:
    if any(key.startswith(b"ARROW:extension") for key in field.metadata or {}):
        raise CodecError(f"the column {field.name[:80]!r} is of an extension type, which is not accepted")
    _check_type(pa, field.name, field.type, depth)


def _check_type(pa: Any, name: str, kind: Any, depth: int) -> None:
    types = pa.types
    if depth <= 0:
        raise CodecError(f"the column {name[:80]!r} is nested too deep")
    if isinstance(kind, pa.BaseExtensionType) or not any(is_it(kind) for is_it in _allowed(types)):
        raise CodecError(f"the column {name[:80]!r} is of the type {str(kind)[:80]}, which is not accepted")
    if types.is_timestamp(kind) and kind.tz and not re.fullmatch(r"[A-Za-z0-9_+\-/:]{1,64}", kind.tz):
        raise CodecError(f"the column {name[:80]!r} has a time zone that is none")
    if types.is_dictionary(kind):
        if types.is_nested(kind.value_type) or types.is_dictionary(kind.value_type):
            raise CodecError(f"the column {name[:80]!r} is a dictionary of nested values")
        _check_type(pa, name, kind.value_type, depth - 1)
    elif types.is_nested(kind):
        for index in range(kind.num_fields):
            _check_field(pa, kind.field(index), depth - 1)


def _allowed(types: Any) -> tuple[Callable[[Any], bool], ...]:
    return (
        types.is_null,
        types.is_boolean,
        types.is_integer,
        types.is_floating,
        types.is_decimal,
        types.is_string,
        types.is_large_string,
        types.is_binary,
        types.is_large_binary,
        types.is_fixed_size_binary,
        types.is_date,
        types.is_time,
        types.is_timestamp,
        types.is_duration,
        types.is_list,
        types.is_large_list,
        types.is_fixed_size_list,
        types.is_struct,
        types.is_map,
        types.is_dictionary,
    )


def _logical_bytes(pa: Any, column: Any) -> int:
    """What a column takes once each value stands for itself: no shared dictionary, a Python object for each text."""
    types, kind = pa.types, column.type
    if types.is_dictionary(kind):
        return _dictionary_bytes(pa, column)
    if types.is_nested(kind):
        children = column.flatten() if types.is_struct(kind) else [column.flatten()] if not types.is_map(kind) else []
        if types.is_map(kind):
            children = [column.keys, column.items]
        return len(column) * 16 + sum(_logical_bytes(pa, child) for child in children)
    overhead = 48 if _is_text(types, kind) else 8
    return len(column) * overhead + int(column.nbytes)


def _dictionary_bytes(pa: Any, column: Any) -> int:
    import pyarrow.compute as pc

    if not _is_text(pa.types, column.type.value_type):
        return len(column) * 16 + int(column.dictionary.nbytes)
    lengths = pc.binary_length(column.dictionary)
    expanded = pc.sum(pc.take(lengths, column.indices)).as_py() or 0
    return int(expanded) + len(column) * 48


def _is_text(types: Any, kind: Any) -> bool:
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    )


def _pyarrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise CodecError(
            "tables need pyarrow, which is not installed here; run `%pip install pyarrow` there, or return "
            ".to_dict() or .to_numpy()"
        ) from None


def _write_table(table: Any) -> bytes:
    pa = _pyarrow()
    table = pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table
    kept = {key: text for key, text in (table.schema.metadata or {}).items() if key == b"pandas"}
    table = table.replace_schema_metadata(kept or None)
    _check_schema(pa, table.schema, DEFAULT_LIMITS)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=None)) as stream:
        stream.write_table(table)
    written: bytes = sink.getvalue().to_pybytes()
    return written


def _write_polars(frame: Any) -> bytes:
    pl = sys.modules["polars"]  # whoever has a polars frame has polars; nobody else needs it
    objects = [name for name, kind in frame.schema.items() if kind == pl.Object]
    if objects:
        raise CodecError(f"the column {objects[0]!r} holds Python objects, which have no codec; convert it first")
    sink = io.BytesIO()
    frame.write_ipc_stream(sink, compression="uncompressed", compat_level=pl.CompatLevel.oldest())
    return sink.getvalue()


def _write_pandas(frame: Any) -> bytes:
    return _write_table(_pyarrow().Table.from_pandas(frame))


def _write_pandas_series(series: Any) -> bytes:
    return _write_pandas(series.to_frame(_NO_NAME if series.name is None else str(series.name)))


_WRITERS: dict[str, Callable[[Any], bytes]] = {
    "arrow": _write_table,
    "arrow+polars": _write_polars,
    "arrow+polars.series": lambda series: _write_polars(series.to_frame()),
    "arrow+pandas": _write_pandas,
    "arrow+pandas.series": _write_pandas_series,
}


def _one_column(table: Any) -> None:
    if table.num_columns < 1:
        raise CodecError("a column was announced and the table has none")


def _to_polars(table: Any) -> Any:
    polars = _optional("polars")
    if polars is None:
        return table
    try:
        return polars.from_arrow(table.replace_schema_metadata(None))
    except BaseException as error:
        # A panic inside polars is no Exception, and says as little as a crash; everything else is somebody else's.
        if type(error).__module__ == "pyo3_runtime":
            raise CodecError(f"a table that polars cannot take: {str(error)[:200]}") from None
        raise


def _to_polars_series(table: Any) -> Any:
    _one_column(table)
    found = _to_polars(table)
    return found if found is table else found.to_series(0)


def _to_pandas(table: Any) -> Any:
    return table if _optional("pandas") is None else table.to_pandas(use_threads=False)


def _to_pandas_series(table: Any) -> Any:
    _one_column(table)
    found = _to_pandas(table)
    if found is table:
        return found
    column = found.iloc[:, 0]
    return column.rename(None) if column.name == _NO_NAME else column


def _optional(library: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        return None


_READERS: dict[str, Callable[[Any], Any]] = {
    "arrow": lambda table: table,
    "arrow+polars": _to_polars,
    "arrow+polars.series": _to_polars_series,
    "arrow+pandas": _to_pandas,
    "arrow+pandas.series": _to_pandas_series,
}
