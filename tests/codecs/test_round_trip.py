"""What goes in comes out, for every kind of value that a codec takes."""

from __future__ import annotations

import datetime as dt
import decimal
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from jupyter_gpumarket import codecs
from jupyter_gpumarket.errors import CodecError

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
)
KEYS = st.text(st.characters(codec="utf-8"), max_size=5) | st.integers() | st.tuples(st.integers())
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(KEYS, inner)
        | st.dictionaries(st.just("$"), inner)
        | st.sets(st.integers())
        | st.frozensets(st.text(st.characters(codec="utf-8")))
    ),
    max_leaves=20,
)


@given(VALUES)
@example(dt.datetime(2000, 1, 1, fold=1))
@example(dt.time(2, 30, fold=1))
def test_python_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    """Plain Python values survive exactly, containers and keys of other types included."""
    encoded = codecs.encode(value)

    assert encoded.codec == "json"
    back = codecs.decode("json", encoded.data)
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, set | frozenset | dict | list | tuple)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_json_lacks_come_back(value: float) -> None:
    """NaN and the infinities are written as tags, not as the NaN of lenient JSON."""
    encoded = codecs.encode([value])

    assert b"NaN" not in encoded.data
    (back,) = codecs.decode("json", encoded.data)
    assert back == value or (math.isnan(back) and math.isnan(value))


ARRAYS = [
    np.arange(12, dtype="float32").reshape(3, 4),
    np.asfortranarray(np.arange(12).reshape(3, 4)),
    np.array(3.5),
    np.zeros((0, 5)),
    np.array([True, False]),
    np.array(["a", "é", "🎉"]),
    np.array([b"x", b"yz"]),
    np.array(["2026-01-01"], dtype="datetime64[s]"),
    np.array([1 + 2j]),
    np.arange(5, dtype=">i4"),
    np.arange(10)[::2],
]


@pytest.mark.parametrize("value", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_arrays_come_back_and_can_be_written_to(value: np.ndarray) -> None:
    """An array keeps dtype, shape and values, and the copy is the user's own."""
    encoded = codecs.encode(value)
    back = codecs.decode(encoded.codec, encoded.data)

    assert encoded.codec == "npy"
    assert back.dtype == value.dtype
    np.testing.assert_array_equal(back, value)
    assert back.flags.writeable


def test_named_tensors_are_safetensors_that_the_library_reads_and_the_other_way_round() -> None:
    """A dict of arrays is a true safetensors file."""
    weights = {"w": np.random.default_rng(1).random((3, 4)), "b": np.zeros(0, np.float16), "flag": np.array([True])}
    encoded = codecs.encode(weights)

    assert encoded.codec == "safetensors"
    theirs = safetensors.numpy.load(encoded.data)
    ours = codecs.decode("safetensors", safetensors.numpy.save(weights))
    for name, array in weights.items():
        np.testing.assert_array_equal(theirs[name], array)
        np.testing.assert_array_equal(ours[name], array)
    assert list(codecs.decode("safetensors", encoded.data)) == list(weights)


def test_a_dict_that_mixes_arrays_and_numbers_comes_back() -> None:
    """Results like {"weights": array, "score": 0.9} need no special form."""
    encoded = codecs.encode({"weights": np.eye(2), "score": np.float64(0.9), "history": [np.int64(1), 2]})
    back = codecs.decode(encoded.codec, encoded.data)

    np.testing.assert_array_equal(back["weights"], np.eye(2))
    assert (back["score"], back["history"]) == (0.9, [1, 2])
    assert type(back["history"][0]) is int


WHEN = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
POLARS = pl.DataFrame(
    {
        "n": [1, None],
        "s": ["x", "ü"],
        "t": [WHEN, WHEN],
        "l": [[1], []],
        "d": [{"a": 1}, {"a": 2}],
        "c": pl.Series(["a", "b"], dtype=pl.Categorical),
        "z": [None, None],
        "m": [decimal.Decimal("1.10"), None],
        "b": [b"x", b""],
    }
)
PANDAS = pd.DataFrame({"a": [1.5, None], "s": ["x", "y"], "c": pd.Categorical(["u", "v"])}, index=["r1", "r2"])


def test_polars_frames_and_series_come_back_as_polars() -> None:
    """A polars frame is a polars frame again, a series a series."""
    frame, series = codecs.encode(POLARS), codecs.encode(POLARS["s"])

    assert codecs.decode(frame.codec, frame.data).equals(POLARS)
    assert codecs.decode(series.codec, series.data).equals(POLARS["s"])


def test_pandas_frames_and_series_come_back_as_pandas() -> None:
    """A pandas frame keeps its index and categories; a series its name, or none."""
    for value in (PANDAS, PANDAS.reset_index(), PANDAS.set_index(["a", "s"])):
        encoded = codecs.encode(value)
        pd.testing.assert_frame_equal(codecs.decode(encoded.codec, encoded.data), value)
    for series in (PANDAS["a"], pd.Series([1, 2])):
        encoded = codecs.encode(series)
        pd.testing.assert_series_equal(codecs.decode(encoded.codec, encoded.data), series)


def test_arrow_tables_come_back_as_arrow() -> None:
    """A pyarrow table stays one."""
    table = pa.table({"a": [1, 2], "b": pa.array(["x", "y"]).dictionary_encode()})
    encoded = codecs.encode(table)

    assert encoded.codec == "arrow"
    assert codecs.decode("arrow", encoded.data).equals(table)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (object(), "object"),
        (lambda: 1, "function"),
        (open, "builtin_function_or_method"),
        (np.array([object()]), "Python objects"),
        (np.zeros(2, dtype=[("a", "i4")]), "structures"),
        (np.ma.masked_array([1], mask=[True]), "MaskedArray"),
        ({"deep": [1, {"model": object()}]}, "['deep'][1]['model']"),
        (pl.DataFrame({"o": [object()]}), "Python objects"),
        (pl.LazyFrame({"a": [1]}), "LazyFrame"),
        ("\ud800", "surrogate"),
        (10**2000, "digits"),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, str) else "",
)
def test_what_no_codec_takes_is_refused_with_its_type_and_a_way_out(value: Any, named: str) -> None:
    """The error says which type it was, where in the value, and what to return instead."""
    with pytest.raises(CodecError) as caught:
        codecs.encode(value)

    assert named in str(caught.value)
    assert ".state_dict()" in str(caught.value)


def test_a_value_that_holds_itself_is_refused() -> None:
    """A cycle ends as an error, not as a crash."""
    loop: list[Any] = []
    loop.append(loop)

    with pytest.raises(CodecError, match="holds itself"):
        codecs.encode(loop)


def test_inputs_that_no_codec_takes_go_as_cloudpickle_and_are_never_decoded_here() -> None:
    """The user's own function may travel to the node, but this side does not open the format."""
    encoded = codecs.encode_input(lambda x: x + 1)

    assert encoded.codec == "cloudpickle"
    with pytest.raises(CodecError, match="not opened"):
        codecs.decode("cloudpickle", encoded.data)


def test_an_input_that_cannot_be_sent_is_refused_by_type() -> None:
    """A generator cannot travel; the message names it."""
    with pytest.raises(CodecError, match="generator"):
        codecs.encode_input(x for x in [1])


@pytest.mark.parametrize("value", [[1, (2, 3)], np.eye(2), {"w": np.eye(2)}, POLARS, PANDAS, uuid.UUID(int=5)])
def test_honest_results_pass_the_checking_process(value: Any, tmp_path: Path) -> None:
    """The child accepts what the encoder writes, for every codec."""
    encoded = codecs.encode(value)
    (tmp_path / "result").write_bytes(encoded.data)

    codecs.verify_in_child(encoded.codec, tmp_path / "result")
