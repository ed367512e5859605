"""Variables in (`-i`), encoded before anything is rented, and out (`-o`), decoded without running anything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import InputRef, RunView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import ClusterClient
from jupyter_gpumarket.clock import Clock, in_words
from jupyter_gpumarket.errors import BadRequest, CodecError, GpuMarketError
from jupyter_gpumarket.notebook.stage import Stage

LARGE_BYTES = 8 * 1024 * 1024
# Until a first transfer has been measured: a slow upstream, so that the guess is rather too long than too short.
GUESSED_BYTES_S = 2_000_000


class InputValue(msgspec.Struct, frozen=True, kw_only=True):
    """A variable, encoded."""

    name: str
    codec: str
    data: bytes

    @property
    def ref(self) -> InputRef:
        """How a run names it."""
        sha256 = hashlib.sha256(self.data).hexdigest()
        return InputRef(name=self.name, codec=self.codec, sha256=sha256, size=len(self.data))


def encode_inputs(names: tuple[str, ...], namespace: Mapping[str, Any]) -> list[InputValue]:
    """The variables as bytes.

    Raises:
        BadRequest: a name that the notebook does not know; names the nearest.
        CodecError: a value that cannot be sent.
    """
    for name in names:
        input_value(name, namespace)
    values = []
    for name in names:
        try:
            encoded = codecs.encode_input(namespace[name])
        except CodecError as error:
            raise CodecError(f"-i {name}: {error}") from None
        values.append(InputValue(name=name, codec=encoded.codec, data=encoded.data))
    return values


def input_value(name: str, namespace: Mapping[str, Any], *, argument: str = "-i") -> Any:
    """A variable of the notebook.

    Raises:
        BadRequest: there is none of that name; names the nearest.
    """
    if name not in namespace:
        known = [name for name in namespace if not name.startswith("_")]
        near = get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else "; define it in a cell before this one"
        raise BadRequest(f"{argument} {name}: this notebook has no variable of that name{hint}")
    return namespace[name]


def send_inputs(values: list[InputValue], cluster: ClusterClient, stage: Stage, clock: Clock) -> tuple[InputRef, ...]:
    """Put the bytes where the run finds them. Blobs go by content, so a second try sends nothing twice."""
    for value in values:
        size = len(value.data)
        if size > LARGE_BYTES:
            stage.say(f"sending {value.name}: {size_words(size)}, expected {in_words(size / GUESSED_BYTES_S)} or less")
        started_s = clock.monotonic_s()
        cluster.put_blob(value.data)
        if size > LARGE_BYTES:
            stage.say(f"sent {value.name} in {in_words(clock.monotonic_s() - started_s)}; it goes on to the node")
    return tuple(value.ref for value in values)


def fetch_outputs(
    view: RunView, cluster: ClusterClient, namespace: dict[str, Any], stage: Stage, clock: Clock
) -> tuple[str, ...]:
    """Bring the outputs into the notebook. The cluster process has verified them; they are decoded, never unpickled.

    Raises:
        CodecError: after all others were brought, for those that could not be.
    """
    brought: list[str] = []
    failed: list[str] = []
    for ref in view.outputs:
        if ref.error:
            failed.append(f"{ref.name}: {one_line(ref.error, 500)}")
            continue
        started_s = clock.monotonic_s()
        try:
            data = cluster.output(view.run_id, ref.name)
            namespace[ref.name] = codecs.decode(ref.codec, data)
        except GpuMarketError as error:
            failed.append(f"{ref.name}: {one_line(str(error), 500)}")
            continue
        brought.append(ref.name)
        if len(data) > LARGE_BYTES:
            stage.say(f"brought {ref.name}: {size_words(len(data))} in {in_words(clock.monotonic_s() - started_s)}")
    if failed:
        raise CodecError("not brought back: " + "; ".join(failed))
    return tuple(brought)


def size_words(size: int) -> str:
    """`12 MB`, as people say it."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} bytes"
