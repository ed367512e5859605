"""Bytes from a node that are not what they claim: refused, cheaply, and never run."""

from __future__ import annotations

import base64
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jupyter_gpumarket import codecs
from jupyter_gpumarket.codecs import CODECS, Limits, decode, encode, verify_in_child
from jupyter_gpumarket.errors import CodecError

SMALL = Limits(memory_bytes=1024**3, logical_bytes=512 * 1024**2, cpu_s=20, timeout_s=30)
GIB = 1024**3


def npy(shape: str, descr: str = "'<f8'", body: bytes = b"", fortran: str = "False") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def tensors(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def stream(table: pa.Table, compression: str | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


class HookedType(pa.ExtensionType):
    """An extension type as a node might send it; its hook would run on reading where it is registered."""

    def __init__(self) -> None:
        super().__init__(pa.int64(), "evil.type")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: Any, serialized: bytes) -> HookedType:
        return cls()


def bad_offsets() -> bytes:
    data = bytearray(stream(pa.table({"s": ["aaaa", "bbbb", "cccc"]})))
    at = data.index(struct.pack("<4i", 0, 4, 8, 12))
    data[at + 8 : at + 12] = struct.pack("<i", 10**9)
    return bytes(data)


def dictionary_bomb() -> pa.Table:
    indices = pa.array(np.zeros(1_000_000, "int8"))
    return pa.table({"d": pa.DictionaryArray.from_arrays(indices, pa.array(["x" * 10_000_000]))})


def ree_bomb() -> pa.Table:
    ends, values = pa.array([2**31 - 1], pa.int32()), pa.array(["boom"])
    return pa.table({"r": pa.RunEndEncodedArray.from_arrays(ends, values)})


def extension() -> pa.Table:
    return pa.table({"e": pa.ExtensionArray.from_storage(HookedType(), pa.array([1]))})


OVERLAP = {
    "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
    "b": {"dtype": "F64", "shape": [1], "data_offsets": [4, 12]},
}
HOSTILE: dict[str, tuple[str, bytes]] = {
    "json: depth 100,000": ("json", b"[" * 100_000 + b"]" * 100_000),
    "json: a number of 5,000 digits": ("json", b"1" * 5_000),
    "json: NaN": ("json", b"[NaN]"),
    "json: Infinity": ("json", b"-Infinity"),
    "json: 1e999": ("json", b"1e999"),
    "json: a key twice": ("json", b'{"a": 1, "a": 2}'),
    "json: a lone surrogate": ("json", b'"\\ud800"'),
    "json: a lone surrogate as a key": ("json", b'{"\\udfff": 1}'),
    "json: a raw NUL": ("json", b'"a\0b"'),
    "json: not UTF-8": ("json", b'"\xff"'),
    "json: something after it": ("json", b"1 2"),
    "json: empty": ("json", b""),
    "json: a byte order mark": ("json", b"\xef\xbb\xbf1"),
    "json: 6 million items": ("json", b"[" + b"0," * 6_000_000 + b"0]"),
    "json: an unknown tag": ("json", b'{"$": "object", "v": "os.system"}'),
    "json: a tag with more fields": ("json", b'{"$": "tuple", "v": [], "x": 1}'),
    "json: a tag that holds another type": ("json", b'{"$": "bytes", "v": 5}'),
    "json: an unhashable set": ("json", b'{"$": "set", "v": [[1]]}'),
    "json: a date that is none": ("json", b'{"$": "date", "v": "2026-99-99"}'),
    "json: an npy bomb inside": (
        "json",
        json.dumps({"$": "npy", "v": base64.b64encode(npy("(10**12,)")).decode()}).encode(),
    ),
    "npy: 10^12 numbers": ("npy", npy("(1000000000000,)")),
    "npy: an overflowing shape": ("npy", npy("(4611686018427387904, 4)")),
    "npy: a negative shape": ("npy", npy("(-1,)")),
    "npy: shape of text": ("npy", npy("('a',)")),
    "npy: objects": ("npy", npy("(1,)", "'|O'", pickle.dumps([1]))),
    "npy: structures": ("npy", npy("(1,)", "[('a', '<f8')]", b"\0" * 8)),
    "npy: a subarray type": ("npy", npy("(1,)", "('<f8', (2,))", b"\0" * 16)),
    "npy: bytes after it": ("npy", npy("(1,)", body=b"\0" * 9)),
    "npy: too short": ("npy", npy("(2,)", body=b"\0" * 8)),
    "npy: code in the header": ("npy", npy("(__import__('os').getpid(),)")),
    "npy: a deep header": ("npy", npy("(" * 500 + ")" * 500)),
    "npy: a truth value of 7": ("npy", npy("(1,)", "'|b1'", b"\x07")),
    "npy: text beyond Unicode": ("npy", npy("(1,)", "'<U1'", b"\xff\xff\xff\x7f")),
    "npy: version 3": ("npy", b"\x93NUMPY\x03\x00" + b"\0" * 100),
    "safetensors: a header of 2^62 bytes": ("safetensors", struct.pack("<Q", 2**62) + b"{}"),
    "safetensors: 10^6 tensors": (
        "safetensors",
        tensors(b"{" + b",".join(b'"%d":{}' % n for n in range(1_000_000)) + b"}"),
    ),
    "safetensors: overlapping": ("safetensors", tensors(OVERLAP, b"\0" * 12)),
    "safetensors: beyond the end": (
        "safetensors",
        tensors({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}),
    ),
    "safetensors: bytes after it": ("safetensors", encode({"a": np.zeros(1)}).data + b"PK\x03\x04"),
    "safetensors: shape and bytes differ": (
        "safetensors",
        tensors({"a": {"dtype": "F64", "shape": [2], "data_offsets": [0, 8]}}, b"\0" * 8),
    ),
    "safetensors: negative offsets": (
        "safetensors",
        tensors({"a": {"dtype": "F64", "shape": [1], "data_offsets": [-8, 0]}}, b"\0" * 8),
    ),
    "safetensors: a name twice": ("safetensors", tensors(b'{"a":{},"a":{}}')),
    "safetensors: a list": ("safetensors", tensors(b"[]")),
    "arrow: an offset of 10^9": ("arrow", bad_offsets()),
    "arrow: run-end encoding, 2^31 rows": ("arrow", stream(ree_bomb())),
    "arrow: zstd bomb": ("arrow", stream(pa.table({"a": np.zeros(50_000_000)}), "zstd")),
    "arrow: lz4 bomb": ("arrow", stream(pa.table({"a": np.zeros(50_000_000)}), "lz4")),
    "arrow: dictionary bomb": ("arrow", stream(dictionary_bomb())),
    "arrow: a billion nulls": ("arrow", stream(pa.table({"n": pa.nulls(10**9)}))),
    "arrow: an extension type": ("arrow", stream(extension())),
    "arrow: bytes after it": ("arrow", stream(pa.table({"a": [1]})) + b"PK\x03\x04"),
    "arrow: cut short": ("arrow", stream(pa.table({"a": list(range(1000))}))[:-3000]),
    "arrow: not UTF-8": ("arrow", stream(pa.table({"s": ["abcdefgh"]})).replace(b"abcdefgh", b"abc\xff\xfefgh")),
    "arrow: foreign metadata": ("arrow", stream(pa.table({"a": [1]}).replace_schema_metadata({"x": "y"}))),
    "arrow: empty": ("arrow", b""),
    "an unknown codec": ("cloudpickle", cloudpickle.dumps(1)),
}


@pytest.mark.parametrize("case", sorted(HOSTILE))
def test_hostile_bytes_are_refused_by_the_checking_process(case: str, tmp_path: Path) -> None:
    """Each attack ends in a CodecError, soon, within bounded memory, and this process goes on."""
    codec, data = HOSTILE[case]
    (tmp_path / "result").write_bytes(data)
    started = time.monotonic()
    with pytest.raises(CodecError) as refused:
        verify_in_child(codec, tmp_path / "result", SMALL)

    assert len(str(refused.value)) < 2000
    assert time.monotonic() - started < 15
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 2 * GIB


MARKER = "GPUMARKET_TEST_MARKER"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def disguises(path: Path) -> dict[str, bytes]:
    raw = pickle.dumps(Bomb(path))
    quoted = base64.b64encode(raw).decode()
    table = pa.table({"a": [1]})
    return {
        "json": json.dumps({"$": "pickle", "v": quoted}).encode(),
        "npy": npy("(1,)", "'|O'", raw),
        "safetensors": raw,
        "arrow": stream(table.replace_schema_metadata({"PANDAS_ATTRS": raw})),
        "arrow+pandas": stream(table.replace_schema_metadata({"pandas": raw})),
        "arrow+polars": raw,
    }


def test_a_pickle_disguised_as_any_codec_never_runs(tmp_path: Path) -> None:
    """No codec, here or in the child, runs the marker; unpickling the same bytes would (the control)."""
    marker = tmp_path / "ran"
    (tmp_path / "result").write_bytes(b"")
    for codec in sorted(CODECS):
        for data in (pickle.dumps(Bomb(marker)), disguises(marker).get(codec, b"")):
            (tmp_path / "result").write_bytes(data)
            with pytest.raises(CodecError):
                verify_in_child(codec, tmp_path / "result", SMALL)
            with pytest.raises(CodecError):
                decode(codec, data)
    assert not marker.exists()

    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def test_values_that_are_not_decoded_by_a_hook_reach_no_unpickler() -> None:
    """Over all honest values too, decoding never asks the unpickler for a class."""
    code = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(arguments) if event == "pickle.find_class" else None)
import numpy as np, polars as pl, pandas as pd
from jupyter_gpumarket import codecs
seen.clear()
for value in (1, {"a": (1, b"x")}, np.eye(3), {"w": np.eye(2)}, pl.DataFrame({"a": ["x"]}), pd.DataFrame({"a": ["x"]})):
    encoded = codecs.encode(value)
    codecs.decode(encoded.codec, encoded.data)
assert not seen, seen
import pickle
pickle.loads(pickle.dumps(codecs.Encoded(codec="json", data=b"1")))
assert seen, "the hook would have seen it"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 0, done.stderr


HONEST = {
    "json": encode({"a": [1, (2.5, "x")], "b": b"bytes"}),
    "npy": encode(np.arange(12.0).reshape(3, 4)),
    "safetensors": encode({"w": np.eye(3), "b": np.arange(3)}),
    "arrow": encode(pa.table({"n": [1, None], "s": ["x", "yy"], "l": [[1], [2, 3]]})),
    "arrow+polars": encode(pl.DataFrame({"s": ["x", "y"], "c": pl.Series(["a", "b"], dtype=pl.Categorical)})),
    "arrow+pandas": encode(pd.DataFrame({"s": ["x", "y"], "c": pd.Categorical(["a", "b"])})),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to eight small accidents."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(found) + 1)
        match rng.randrange(5):
            case 0:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del found[at : at + rng.randint(1, 16)]
            case 2:
                found[at:at] = rng.randbytes(rng.randint(1, 16))
            case 3:
                found[at : at + 8] = struct.pack("<q", rng.choice([-1, 0, 2**31 - 1, 2**62, 10**9]))
            case _:
                if found:
                    found[at : at + 1] = bytes([found[at % len(found)] ^ (1 << rng.randrange(8))])
    return bytes(found)


@pytest.mark.parametrize("codec", ["json", "npy", "safetensors"])
def test_our_own_readers_answer_every_mutation_with_a_value_or_a_refusal(codec: str) -> None:
    """3,000 seeded mutations: no other exception ever leaves the reader."""
    for seed in range(3_000):
        data = mutated(HONEST[codec].data, random.Random(seed))
        try:
            decode(codec, data, SMALL)
        except CodecError:
            continue


MUTATE = """
import sys, random, warnings
warnings.simplefilter("ignore")
from tests.codecs.test_hostile import HONEST, SMALL, mutated
from jupyter_gpumarket.codecs import decode
from jupyter_gpumarket.errors import CodecError
codec, first = sys.argv[1], int(sys.argv[2])
for seed in range(first, first + 300):
    print(seed, flush=True)
    try:
        repr(decode(codec, mutated(HONEST[codec].data, random.Random(seed)), SMALL))
    except CodecError:
        pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["arrow", "arrow+polars", "arrow+pandas"])
def test_mutated_tables_end_as_a_value_or_a_refusal_or_at_worst_in_the_child(codec: str, tmp_path: Path) -> None:
    """Hundreds of mutations in a process that may die; where it died, the checking process dies instead of us."""
    first, deaths = 0, 0
    while first < 300 and deaths < 10:
        done = subprocess.run(
            [sys.executable, "-c", MUTATE, codec, str(first)], capture_output=True, text=True, check=False, timeout=110
        )
        if done.returncode == 0:
            break
        assert done.returncode < 0, f"another exception than CodecError: {done.stderr[-2000:]}"
        deaths += 1
        seed = int(done.stdout.split()[-1])
        (tmp_path / "result").write_bytes(mutated(HONEST[codec].data, random.Random(seed)))
        with pytest.raises(CodecError):
            verify_in_child(codec, tmp_path / "result", SMALL)
        first = seed + 1
    assert deaths < 10


def test_a_checking_process_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """The time limit holds, and the verdict names it."""
    (tmp_path / "result").write_bytes(b"1")
    with pytest.raises(CodecError, match=r"0\.01 s"):
        verify_in_child("json", tmp_path / "result", Limits(timeout_s=0.01))


def test_a_checking_process_that_needs_too_much_memory_is_ended(tmp_path: Path) -> None:
    """An honest but large value under a small memory limit is refused, not swapped for."""
    (tmp_path / "result").write_bytes(encode({"a": np.zeros(20_000_000)}).data)
    with pytest.raises(CodecError, match=r"memory|checking process"):
        verify_in_child("safetensors", tmp_path / "result", Limits(memory_bytes=64 * 1024**2))


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in place of the result is not opened."""
    (tmp_path / "secret").write_bytes(b"1")
    (tmp_path / "result").symlink_to(tmp_path / "secret")
    with pytest.raises(CodecError, match="cannot be read"):
        verify_in_child("json", tmp_path / "result")


def test_the_checking_process_has_nothing_of_ours(tmp_path: Path) -> None:
    """What it runs in: no environment, no network, no file beyond the one, no child processes, no unpickling."""
    probe = """
import sys; sys.path.insert(0, sys.argv[1])
from jupyter_gpumarket.codecs import child, Limits
import os, socket, pickle, subprocess
child._give_up(Limits())
print([n for n in os.environ if "TOKEN" in n or "KEY" in n])
for attempt in (lambda: open("/etc/hostname"), lambda: socket.create_connection(("127.0.0.1", 1), 1),
                lambda: subprocess.run(["true"]), lambda: os.fork(), lambda: os.system("true"),
                lambda: pickle.loads(b"cos\\nsystem\\n.")):
    try:
        attempt()
        print("allowed", attempt)
    except BaseException as error:
        print("refused", type(error).__name__)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe, str(Path(codecs.__file__).parents[2])],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"LANG": "C.UTF-8"},
    )

    assert done.stdout.splitlines()[0] == "[]"
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == ["refused"] * 6, done.stdout + done.stderr
