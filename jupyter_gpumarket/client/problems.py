"""From a `Problem` on the wire back to the exception it was."""

from __future__ import annotations

import msgspec

from jupyter_gpumarket import errors
from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.api.requests import InvalidField, NotFound


def exception_of(problem: Problem) -> errors.GpuMarketError:
    """The exception that the other side raised, as the same class; of an unknown name, the root class."""
    kind = getattr(errors, problem.error, errors.GpuMarketError)
    if not (isinstance(kind, type) and issubclass(kind, errors.GpuMarketError)):
        kind = errors.GpuMarketError
    if issubclass(kind, errors.MarketplaceError):
        marketplace, _, message = problem.message.partition(": ")
        return kind(marketplace, message)
    if issubclass(kind, errors.RemoteError):
        name, _, value = problem.message.partition(": ")
        return kind(name, value)
    return kind(problem.message)


def problem_in(status: int, body: bytes, where: str) -> errors.GpuMarketError:
    """The exception of an error answer; one that is no `Problem` is told as what it is."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return errors.BrokerUnavailable(f"{where} answered {status} with something that is not ours: {body[:200]!r}")
    error = exception_of(problem)
    # Told as what it was, so that a door which answers others (the Jupyter server) can answer with the same status.
    if type(error) is errors.BadRequest and status == 404:
        return NotFound(problem.message, what=problem.field)
    if type(error) is errors.BadRequest and problem.field:
        return InvalidField(problem.message, name=problem.field)
    return error
