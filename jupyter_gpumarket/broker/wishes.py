"""What is asked of clusters: whether it can be, and whether it is for the cluster that there is."""

from __future__ import annotations

from jupyter_gpumarket.api import ClusterWish
from jupyter_gpumarket.api.requests import InvalidField
from jupyter_gpumarket.broker.names import FITS
from jupyter_gpumarket.errors import LeaseError
from jupyter_gpumarket.money import MAX_NUSD


def check_meant(name: str, meant: str, living: str) -> None:
    """Refuse what is not for the living cluster of a name; `living` is its id, empty when there is none.

    Raises:
        LeaseError: the cluster that is meant has ended, whether or not another one has its name now.
    """
    if living:
        check_same(name, meant, living)
    else:
        raise LeaseError(f"{name} was given back; begin another cluster to rent again")


def check_same(name: str, meant: str, known: str) -> None:
    """Refuse what is for another cluster than the one that has the name now.

    Raises:
        LeaseError: it is for a former one.
    """
    if meant != known:
        raise LeaseError(f"{name} is another cluster now than the one that is meant; look again")


def check(name: str, wish: ClusterWish) -> None:
    """Refuse what can be for no cluster.

    Raises:
        InvalidField: names the field.
    """
    if not FITS.fullmatch(name):
        raise InvalidField(
            f"the name {name[:60]!r} must start with a letter or digit and hold only those, '-', '_' and '.', "
            "at most 40 in all",
            name="name",
        )
    if wish.aim.maximum < wish.aim.minimum:
        raise InvalidField("aim: the maximum is below the minimum", name="aim")
    if not 0 < wish.budget_nusd <= MAX_NUSD:
        raise InvalidField("budget_nusd must be positive", name="budget_nusd")
    if wish.max_s <= 0:
        raise InvalidField("max_s must be positive", name="max_s")
