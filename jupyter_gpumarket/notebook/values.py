"""Variables in (`-i`), encoded before anything is rented, and out (`-o`), decoded without running anything."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import msgspec

from jupyter_gpumarket import codecs
from jupyter_gpumarket.api import DaskView, InputRef, RunView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import ClusterClient
from jupyter_gpumarket.clock import Clock, in_words
from jupyter_gpumarket.errors import BadRequest, CodecError, GpuMarketError
from jupyter_gpumarket.models import Lease
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.notebook.data import Data, DataStore, is_large_array, size_words
from jupyter_gpumarket.notebook.stage import Stage

LARGE_BYTES = 8 * 1024 * 1024
# Until a first transfer has been measured: a slow upstream, so that the guess is rather too long than too short.
GUESSED_BYTES_S = 2_000_000
# The store of large values, made only when there is one.
Keeper = Callable[[], DataStore]


class InputValue(msgspec.Struct, frozen=True, kw_only=True):
    """A variable, encoded: its bytes, or a handle to them."""

    name: str
    codec: str
    data: bytes = b""
    handle: Data | None = None

    @property
    def size(self) -> int:
        """How much has to be brought to a node."""
        return len(self.data) if self.handle is None else self.handle.size

    @property
    def ref(self) -> InputRef:
        """How a run names it."""
        sha256 = hashlib.sha256(self.data).hexdigest() if self.handle is None else self.handle.sha256
        return InputRef(name=self.name, codec=self.codec, sha256=sha256, size=self.size)


def encode_inputs(names: tuple[str, ...], namespace: Mapping[str, Any], store: Keeper) -> list[InputValue]:
    """The variables as bytes; large ones are kept in the store, so that a second cell does not send them again.

    Raises:
        BadRequest: a name that the notebook does not know; names the nearest.
        CodecError: a value that cannot be sent.
    """
    for name in names:
        input_value(name, namespace)
    return [_encoded(name, namespace[name], store) for name in names]


def _encoded(name: str, value: Any, store: Keeper) -> InputValue:
    if isinstance(value, Data):
        return InputValue(name=name, codec=value.codec, handle=value)
    try:
        if is_large_array(value):
            handle = store().keep_array(value, name=name)
            return InputValue(name=name, codec=handle.codec, handle=handle)
        encoded = codecs.encode_input(value)
    except CodecError as error:
        raise CodecError(f"-i {name}: {error}") from None
    if len(encoded.data) > LARGE_BYTES:
        return InputValue(name=name, codec=encoded.codec, handle=store().keep(encoded.codec, encoded.data, name=name))
    return InputValue(name=name, codec=encoded.codec, data=encoded.data)


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


def send_inputs(
    values: list[InputValue], cluster: ClusterClient, stage: Stage, lease: Lease | None = None, *others: Lease
) -> tuple[InputRef, ...]:
    """Put the bytes where the run finds them. Blobs go by content, so a second try sends nothing twice.

    `others`: nodes beside the lease's that need them too.
    """
    for value in values:
        if value.handle is None:
            cluster.put_blob(value.data)
            continue
        if not cluster.has_blob(value.handle.sha256):
            leases = [one.lease_id for one in (lease, *others) if one is not None]
            more = f"; {crossing_words(cluster.dask(), leases)}" if others else ""
            stage.say(f"sending {value.name}: {transfer_words(value.size, lease)}{more}")
        cluster.give_file(value.handle.path, value.handle.sha256)
    return tuple(value.ref for value in values)


def transfer_words(size: int, lease: Lease | None) -> str:
    """What bringing so many bytes to a node takes: size, time and price, before it begins."""
    seconds = size / GUESSED_BYTES_S
    words = f"{size_words(size)}, expected {in_words(seconds)} or less"
    if lease is None or lease.offer is None:
        return words
    traffic = lease.offer.billing.ingress_nusd_gib * size // 1024**3
    time_nusd = cost_nusd(lease.price_nusd_hour, round(seconds * 1000))
    return f"{words}: at most {format_usd(time_nusd, places=4)} of the node's time, traffic {format_usd(traffic)}"


def crossing_words(view: DaskView, leases: Sequence[str]) -> str:
    """How often something for these nodes crosses the line of this machine: once, where they reach each other."""
    pairs = {(way.from_lease, way.to_lease) for way in view.ways if way.is_direct}
    takers = sum(any((one, former) in pairs for former in leases[:n]) for n, one in enumerate(leases))
    times = len(leases) - takers
    if not takers:
        return f"to each of {len(leases)} nodes from here, for they do not reach each other directly"
    return f"{'once' if times == 1 else f'{times} times'} from here, and from node to node to {takers} of {len(leases)}"


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
