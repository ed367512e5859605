"""The names of `import jupyter_gpumarket as gm`, and its frames."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import polars as pl
import pytest

import jupyter_gpumarket as gm
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import Charge, ChargeKind
from jupyter_gpumarket.notebook import public
from jupyter_gpumarket.notebook.frames import charges_frame, offers_frame
from tests.notebook.fakes import T0, offer

CLASSES = {"GPUCluster", "OfferPicker"}


def test_public_names_are_exactly_the_documented_ones() -> None:
    """`__all__` equals the public functions of the door and its classes; each can be reached and has a docstring."""
    functions = {name for name, thing in vars(public).items() if getattr(thing, "__module__", "") == public.__name__}
    functions = {name for name in functions if not name.startswith("_")}

    assert set(gm.__all__) == functions | CLASSES | {"__version__"}
    assert all(getattr(gm, name).__doc__ for name in functions | CLASSES)
    assert set(gm.__all__) <= set(dir(gm))


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Typing errors are answered as Python does."""
    with pytest.raises(AttributeError):
        _ = gm.offer


def test_importing_the_package_imports_nothing_else() -> None:
    """`import jupyter_gpumarket` is free of the heavy libraries."""
    code = (
        "import sys, jupyter_gpumarket; print([m for m in ('polars', 'IPython', 'httpx', 'nh3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("amount", [0, 1, 291_667, 10**9, 2**63 - 1, -1])
def test_amounts_are_exact_in_frames(amount: int) -> None:
    """The decimal column holds every nano-dollar of an int64."""
    line = Charge(charge_id="c", lease_id="l", kind=ChargeKind.CELL, amount_nusd=amount, start_ms=T0, end_ms=T0)
    frame = charges_frame([line])

    assert frame["amount_usd"][0] == Decimal(amount).scaleb(-9)
    assert frame["amount_nusd"][0] == amount


def test_times_in_frames_are_utc() -> None:
    """Times carry their zone."""
    line = Charge(charge_id="c", lease_id="l", kind=ChargeKind.IDLE, amount_nusd=1, start_ms=T0, end_ms=T0 + 1500)
    frame = charges_frame([line])

    assert frame.schema["start"] == pl.Datetime("ms", "UTC")
    assert (frame["end"] - frame["start"])[0].total_seconds() == 1.5


def test_empty_frames_have_their_columns() -> None:
    """Nothing spent and nothing offered are frames too."""
    assert charges_frame([]).height == offers_frame([]).height == 0
    assert "amount_usd" in charges_frame([]).columns


def test_offers_frame_keeps_price_and_order() -> None:
    """Order as given; price exact."""
    frame = offers_frame([offer(price="0.35"), offer("o2", "0.000000001")])

    assert frame["price_usd_hour"].to_list() == [Decimal("0.35"), Decimal("0.000000001")]


def test_what_is_no_handle_is_refused() -> None:
    """`gm.get` of something else says what it takes."""
    with pytest.raises(BadRequest, match=r"what gm\.put has given, not one int"):
        public.get(3)  # type: ignore[arg-type]
