"""GPU names: one canonical model per spelling and VRAM, and what is known of each model.

Marketplaces spell one card in many ways, and one spelling may mean cards with different memory. So a name is resolved
by spelling *and* VRAM: a 48 GB "RTX 4090" is the modified card, not the 24 GB one. A name that nothing matches stays
unknown, and visible. Figures: `data/`, with their sources in `data/SOURCES.md`.
"""

from __future__ import annotations

import csv
import difflib
import re
from functools import cache
from importlib.resources import files

import msgspec

VRAM_TOLERANCE = 0.09  # drivers report up to 8 % less than what is marketed (a 16 GB T4 with ECC: 14.8 GiB)

_NOISE = re.compile(r"^(?:nvidia|geforce|tesla|amd|instinct|radeon)\s+")
_MAKER_LINE = re.compile(r"^(?:rtx|gtx|quadro rtx|quadro)\s+")
# Words after a family's name that tell a variant of the same card (memory, bus), not another model.
_VARIANT = re.compile(r"^(?:\d+gb|pcie|sxm\d?|nvl|\(modified\))$")


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU model. Figures are per card; None where unknown."""

    name: str
    vendor: str
    architecture: str
    vram_gib: float
    bandwidth_gb_s: float | None
    bf16_tflops: float | None
    fp32_tflops: float | None
    tdp_w: float | None


class _Alias(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    vram_gib: float | None
    plain: bool


def normalised(text: str) -> str:
    """A spelling without case, punctuation between words, and maker's prefixes."""
    words = re.sub(r"[\s_\-]+", " ", text.strip().casefold())
    while (shorter := _NOISE.sub("", words)) != words:
        words = shorter
    return words


def canonical(raw: str, vram_gib: float | None = None) -> str | None:
    """The canonical model of a marketplace's spelling, or None when it is unknown.

    Args:
        raw: the marketplace's own spelling.
        vram_gib: memory per GPU in GiB, where the marketplace tells it.
    """
    found = _aliases().get(normalised(raw), ())
    by_memory = [a for a in found if a.vram_gib is not None and vram_gib and _alike(a.vram_gib, vram_gib)]
    by_name = sorted((a for a in found if a.vram_gib is None), key=lambda a: not a.plain)
    for alias in (*by_memory, *by_name):
        if not vram_gib or _alike(specs()[alias.name].vram_gib, vram_gib):
            return alias.name
    return _sibling(found[0].name, vram_gib) if found and vram_gib else None


def _sibling(name: str, vram_gib: float) -> str | None:
    """The variant of the same family whose memory fits; None when no known card has that memory."""
    family = _family(name)
    fitting = [s.name for s in specs().values() if _family(s.name) == family and _alike(s.vram_gib, vram_gib)]
    return min(fitting, key=len) if fitting else None


def same_but_for_bus(name: str, other: str) -> bool:
    """Whether two canonical models differ in nothing but their bus, such as "A100 80GB" and "A100 SXM 80GB"."""
    return _family(name) == _family(other) and _alike(specs()[name].vram_gib, specs()[other].vram_gib)


def _alike(known_gib: float, told_gib: float) -> bool:
    return abs(known_gib - told_gib) <= VRAM_TOLERANCE * known_gib


def _family(name: str) -> tuple[str, ...]:
    words = _MAKER_LINE.sub("", normalised(name)).split()
    return tuple(word for i, word in enumerate(words) if i == 0 or not _VARIANT.match(word))


@cache
def matching(wanted: str) -> frozenset[str]:
    """All canonical models that a request such as "A100", "rtx4090" or "H100 SXM" means; empty when none does."""
    exact = {alias.name for alias in _aliases().get(normalised(wanted), ())}
    words = _split_name(wanted)
    by_words = {name for name in specs() if _means(words, _split_name(name))}
    return frozenset(exact | by_words)


def _split_name(name: str) -> list[str]:
    spaced = re.sub(r"\b(rtx|gtx)(?=\w*\d)", r"\1 ", normalised(name))
    return _MAKER_LINE.sub("", spaced).split()


def _means(wanted: list[str], name: list[str]) -> bool:
    return bool(wanted) and name[: len(wanted)] == wanted and all(_VARIANT.match(w) for w in name[len(wanted) :])


def nearest(wanted: str, count: int = 3) -> list[str]:
    """The known names most like an unknown one, for error messages."""
    known = {" ".join(_split_name(name)): name for name in specs()}
    close = difflib.get_close_matches(" ".join(_split_name(wanted)), known, n=count, cutoff=0.4)
    return [known[key] for key in close]


@cache
def specs() -> dict[str, Spec]:
    """All known models by canonical name."""
    return {
        row["canonical_name"]: Spec(
            name=row["canonical_name"],
            vendor=row["vendor"],
            architecture=row["architecture"],
            vram_gib=float(row["vram_gib"]),
            bandwidth_gb_s=_number(row["memory_bandwidth_gb_s"]),
            bf16_tflops=_number(row["tensor_bf16_dense_tflops"]),
            fp32_tflops=_number(row["fp32_tflops"]),
            tdp_w=_number(row["tdp_w"]),
        )
        for row in _rows("gpu_specs.csv")
    }


@cache
def _aliases() -> dict[str, tuple[_Alias, ...]]:
    found: dict[str, list[_Alias]] = {}
    for row in _rows("gpu_aliases.csv"):
        alias = _Alias(name=row["canonical_name"], vram_gib=_number(row["vram_gib"]), plain=not row["interface"])
        found.setdefault(normalised(row["raw"]), []).append(alias)
    for name in specs():
        found.setdefault(normalised(name), []).append(_Alias(name=name, vram_gib=None, plain=True))
    return {key: tuple(aliases) for key, aliases in found.items()}


def _number(text: str) -> float | None:
    return float(text) if text else None


def _rows(file: str) -> list[dict[str, str]]:
    text = (files("jupyter_gpumarket.offers") / "data" / file).read_text("utf-8")
    return list(csv.DictReader(text.splitlines()))
