"""From an exception to the status and the `Problem` that a door of ours answers. The one place that decides it."""

from __future__ import annotations

from jupyter_gpumarket import errors
from jupyter_gpumarket.api.base import Problem
from jupyter_gpumarket.api.requests import Forbidden, NotFound

# The first class that fits decides. 401 and 421 never come from here: they end a call before a route is reached.
STATUS: tuple[tuple[type[BaseException], int], ...] = (
    (errors.BadRequest, 400),
    (errors.BudgetExceeded, 402),
    (errors.OfferError, 409),
    (errors.LeaseError, 409),
    (errors.MissingCredentials, 424),
    (errors.ConfigError, 409),
    (errors.Temporary, 503),
    (errors.MarketplaceError, 502),
    (errors.NodeError, 502),
    (errors.JournalFull, 507),
    (errors.BrokerUnavailable, 503),
    (errors.GpuMarketError, 500),
)


def answer_of(error: BaseException, *, bug: str) -> tuple[int, Problem]:
    """Status and `Problem` of an exception. A bug's own words may hold anything and stay in the log: `bug` is told."""
    if not isinstance(error, errors.GpuMarketError):
        return 500, Problem(error="GpuMarketError", message=bug)
    status = next(status for kind, status in STATUS if isinstance(error, kind))
    if isinstance(error, NotFound):
        status = 404
    elif isinstance(error, Forbidden):
        status = 403
    return status, Problem(error=public_name(error), message=str(error), field=getattr(error, "field", ""))


def public_name(error: errors.GpuMarketError) -> str:
    """The name of the nearest class that `errors` has: doors know only those."""
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
