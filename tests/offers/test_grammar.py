"""GPU requests mean what they say."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.offers.grammar import GpuWish, parse


@pytest.mark.parametrize(
    ("text", "low", "high", "count"),
    [
        ("H100:80GB", 72.8, None, (None, None)),
        ("24GB..80GB", 21.84, 80.0, (None, None)),
        ("RTX4090:24GB:2", 21.84, None, (2, 2)),
        ("H100,H200:80GB..:1..8", 72.8, None, (1, 8)),
        ("any::2..", None, None, (2, None)),
        ("..48GB", None, 48.0, (None, None)),
    ],
)
def test_memory_and_count_are_read(
    text: str, low: float | None, high: float | None, count: tuple[int | None, int | None]
) -> None:
    """A single memory figure is a lower bound, a single count is exact, ranges have both ends."""
    wish = parse(text)

    assert (wish.vram_low_gib, wish.vram_high_gib) == (pytest.approx(low), high)
    assert (wish.count_low, wish.count_high) == count


def test_any_none_and_nothing_differ() -> None:
    """Nothing asked takes every machine, `any` asks for a GPU, `none` for a machine without."""
    assert parse(None) == parse(" ") == GpuWish()
    assert parse("any").with_gpu
    assert parse("none").without_gpu


@pytest.mark.parametrize(
    "text", ["H100:80XB", "H100:80GB:x", "a:b:c:d", "none:24GB", "80GB..24GB", "H100:..", "H100::8..2"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    """Nothing is guessed from a request that breaks the grammar."""
    with pytest.raises(BadRequest, match="gpu"):
        parse(text)


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """Who types RTX 4900 is asked whether an RTX 4090 was meant."""
    with pytest.raises(BadRequest, match=r"did you mean .*RTX 4090"):
        parse("RTX 4900")


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No input leads to another error than BadRequest."""
    with contextlib.suppress(BadRequest):
        parse(text)
