"""How much a value from a node may cost before it is refused."""

from __future__ import annotations

from jupyter_gpumarket.models import Record

MIB = 1024 * 1024
GIB = 1024 * MIB


class Limits(Record, frozen=True, kw_only=True):
    """Bounds of one decoding.

    `max_bytes` is what the encoded value may weigh, `json_bytes` the same for JSON (which grows about thirtyfold in
    memory), `logical_bytes` what tables may weigh once expanded. `memory_bytes`, `cpu_s` and `timeout_s` hold for the
    checking process, beyond what an idle one needs.
    """

    max_bytes: int = 2 * GIB
    json_bytes: int = 64 * MIB
    max_depth: int = 64
    max_items: int = 5_000_000
    max_digits: int = 1000
    max_tensors: int = 20_000
    max_columns: int = 10_000
    max_rows: int = 200_000_000
    logical_bytes: int = 4 * GIB
    memory_bytes: int = 6 * GIB
    cpu_s: int = 60
    timeout_s: float = 90.0


DEFAULT_LIMITS = Limits()
