"""The grammar of GPU requests: `names:memory:count`, each part optional.

    H100                 any H100
    H100|A100:80GB       an H100 or an A100 with at least 80 GB a GPU (a comma works like the bar)
    24GB..80GB           any GPU with 24 to 80 GB
    RTX4090:24GB:2       two RTX 4090
    H100,H200:80GB..:8   eight of either
    any / none           any GPU / a machine without one

A single memory figure is a lower bound: who asks for 24 GB is glad of 48.
"""

from __future__ import annotations

import re

import msgspec

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.offers.gpus import VRAM_TOLERANCE, matching, nearest

_MEMORY = re.compile(
    r"^(?P<low>\d+(?:\.\d+)?)?(?:gi?b)?(?P<range>\.\.)?(?P<high>\d+(?:\.\d+)?)?(?:gi?b)?$", re.IGNORECASE
)
_COUNT = re.compile(r"^(?P<low>\d+)?(?P<range>\.\.)?(?P<high>\d+)?$")


class GpuWish(msgspec.Struct, frozen=True, kw_only=True):
    """What a request means. `models` of None: any model; memory is GiB per GPU, both ends included."""

    models: frozenset[str] | None = None
    vram_low_gib: float | None = None
    vram_high_gib: float | None = None
    count_low: int | None = None
    count_high: int | None = None
    without_gpu: bool = False
    with_gpu: bool = False


def parse(text: str | None) -> GpuWish:
    """Read a request.

    Raises:
        BadRequest: an unknown GPU name (the nearest ones are named) or a part that is no memory and no count.
    """
    if text is None or not text.strip():
        return GpuWish()
    parts = [part.strip() for part in text.strip().split(":")]
    if len(parts) > 3:
        raise BadRequest(f"gpu {text!r} has more than three parts; write it like H100:80GB:2")
    word = parts[0].casefold()
    if word == "none":
        if len(parts) > 1:
            raise BadRequest(f"gpu {text!r}: 'none' takes no memory and no count")
        return GpuWish(without_gpu=True)
    if _looks_like_memory(parts[0]):
        parts = ["", *parts]
    names, memory, count = (*parts, "", "")[:3]
    low_gib, high_gib = _bounds(_MEMORY, memory, "memory", "80GB, 24GB.. or 24GB..80GB")
    low, high = _bounds(_COUNT, count, "count", "2, 2.. or 1..8")
    return GpuWish(
        models=None if word == "any" or not names else _models(names),
        vram_low_gib=low_gib and low_gib * (1 - VRAM_TOLERANCE),
        vram_high_gib=high_gib,
        count_low=None if low is None else int(low),
        count_high=None if high is None else int(high),
        with_gpu=True,
    )


def _looks_like_memory(part: str) -> bool:
    return bool(re.match(r"^(\d|\.\.)", part) and re.search(r"gi?b", part, re.IGNORECASE) and _MEMORY.match(part))


def _bounds(pattern: re.Pattern[str], part: str, what: str, examples: str) -> tuple[float | None, float | None]:
    if not part:
        return None, None
    found = pattern.match(part)
    if not found or not (found["low"] or found["high"]):
        raise BadRequest(f"gpu: {part!r} is no {what}; write it like {examples}")
    low = float(found["low"]) if found["low"] else None
    high = float(found["high"]) if found["high"] else None
    if what == "count" and not found["range"]:
        high = low
    if low is not None and high is not None and low > high:
        raise BadRequest(f"gpu: the {what} range {part!r} ends before it begins")
    return low, high


def _models(names: str) -> frozenset[str]:
    models: set[str] = set()
    for name in re.split(r"[|,]", names):
        found = matching(name.strip())
        if not found:
            hint = " or ".join(nearest(name)) or "a name that `%gpu offers` shows"
            raise BadRequest(f"gpu: no GPU is called {name.strip()!r}; did you mean {hint}?")
        models |= found
    return frozenset(models)
