"""Errors cross the wire and arrive as what they were."""

from __future__ import annotations

import inspect

import msgspec
import pytest

from jupyter_gpumarket import errors
from jupyter_gpumarket.api import Problem
from jupyter_gpumarket.api.requests import InvalidField, NotFound
from jupyter_gpumarket.broker.web import answer_of
from jupyter_gpumarket.client.problems import exception_of, problem_in

KINDS = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, errors.GpuMarketError)]


def made(kind: type[errors.GpuMarketError]) -> errors.GpuMarketError:
    """An error of each kind, with what its constructor needs."""
    if issubclass(kind, errors.MarketplaceError):
        return kind("pool", "said no: twice")
    if issubclass(kind, errors.RemoteError):
        return kind("ValueError", "bad: value")
    if issubclass(kind, errors.CommandFailed):
        return kind("set-up failed", exit_code=3, last_lines="no space")
    return kind("what happened to which thing")


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
def test_every_error_survives_the_wire(kind: type[errors.GpuMarketError]) -> None:
    """Class and words are the same on the other side, for the whole tree."""
    error = made(kind)
    status, problem = answer_of(error)
    arrived = exception_of(problem)

    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert 400 <= status < 600


def test_a_marketplaces_name_survives_the_wire() -> None:
    """The caller can still tell which marketplace it was."""
    arrived = exception_of(answer_of(errors.Temporary("pool", "busy", retry_after_s=3))[1])

    assert isinstance(arrived, errors.Temporary)
    assert arrived.marketplace == "pool"


def test_inner_classes_arrive_as_the_public_one() -> None:
    """The broker's own subclasses are told by the name that doors know, with their own status and field."""
    status, problem = answer_of(NotFound("no lease is called x", what="lease"))

    assert (status, problem.error, problem.field) == (404, "BadRequest", "lease")
    assert type(exception_of(problem)) is errors.BadRequest


def test_what_is_not_there_and_what_cannot_be_read_keep_field_and_status() -> None:
    """A door that answers others tells the same status and the same field as the broker told it."""
    for error in (NotFound("no lease is called x", what="lease"), InvalidField("must be positive", name="max_s")):
        status, problem = answer_of(error)

        assert answer_of(problem_in(status, msgspec.json.encode(problem), "broker")) == (status, problem)


def test_a_bug_says_nothing_of_its_inside() -> None:
    """An unexpected exception's text may hold anything, so it stays in the log."""
    status, problem = answer_of(KeyError("secret-token"))

    assert status == 500
    assert "secret-token" not in problem.message


@pytest.mark.parametrize("name", ["os", "annotations", "__name__", "Exception", "NoSuchError", ""])
def test_an_unknown_error_name_is_the_root(name: str) -> None:
    """Whatever name arrives, no other object is looked up or called."""
    assert type(exception_of(Problem(error=name, message="m"))) is errors.GpuMarketError


def test_an_answer_that_is_not_ours_is_told_as_such() -> None:
    """A proxy's HTML page is no Problem."""
    error = problem_in(502, b"<html>bad gateway</html>", "http://127.0.0.1:1/v1/health")

    assert isinstance(error, errors.BrokerUnavailable)
    assert "502" in str(error)
