"""Which ways are direct, and where inputs come from: decisions on what nodes claim, without any network."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.cluster import direct_plan as plan
from jupyter_gpumarket.cluster.direct_plan import Claim, Holder, Way, believed, choose_source, choose_way, tried

HOST = "203.0.113.7"
OWN = Claim(port=40_000, private=("10.1.2.3",))
DIRECT = Way(is_direct=True, reason="10.1.2.4 answers in 0.3 ms", address="10.1.2.4", round_trip_ms=0.3)


@pytest.mark.parametrize(
    ("port", "addresses"),
    [(22, ("10.1.2.4",)), (0, ()), (70_000, ()), (40_000, tuple(f"10.1.2.{n}" for n in range(9)))],
)
def test_a_claim_out_of_bounds_is_refused_with_its_reason(port: int, addresses: tuple[str, ...]) -> None:
    """A port of the system, none at all, or a long list of addresses: no other node hears of any of it."""
    claim = believed(port, addresses, HOST)

    assert claim.reason
    assert tried(claim, OWN) == ()


@pytest.mark.parametrize(
    "address",
    [
        "198.51.100.9",  # somebody's server on the internet
        "8.8.8.8",
        "127.0.0.1",
        "169.254.169.254",  # a cloud's metadata service
        "224.0.0.1",
        "0.0.0.0",
        "::1",
        "fe80::1",
        "2001:db8::1",
        "metadata.google.internal",
        "10.1.2.4.example.org",
        "10.99.0.1",  # private, and in no network of the other node's
        "10.1.2.3",  # the other node's own
    ],
)
def test_a_lying_node_sends_nobody_anywhere_else(address: str) -> None:
    """What a node claims leads others to private neighbours and to the very host that is dialled, and nowhere else."""
    claim = believed(40_001, (address,), HOST)

    assert tried(claim, OWN) == (HOST,)


def test_neighbours_are_tried_first_and_few_are() -> None:
    """A private address in a network of both comes before the public host; not more than three are tried."""
    claimed = tuple(f"10.1.9.{n}" for n in range(8))

    assert tried(believed(40_001, ("10.1.9.4", "192.168.0.9"), HOST), OWN) == ("10.1.9.4", HOST)
    assert len(tried(believed(40_001, claimed, HOST), OWN)) == plan.MAX_TRIED


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "169.254.0.1", "0.0.0.0", ""])
def test_a_host_that_means_another_machine_elsewhere_is_not_tried(host: str) -> None:
    """The user's side may dial a node at an address that is a different machine when another node dials it."""
    assert tried(believed(40_001, (), host), OWN) == ()


@pytest.mark.parametrize(
    ("probe", "is_direct", "words"),
    [
        ({"address": "10.1.2.4", "round_trip_ms": 0.4, "error": "", "relayed_ms": 30.0}, True, "answers in 0.4 ms"),
        ({"address": "10.1.2.4", "round_trip_ms": 90.0, "error": "", "relayed_ms": None}, True, "answers in 90.0 ms"),
        ({"address": "", "round_trip_ms": 0.0, "error": "refused", "relayed_ms": 30.0}, False, "refused"),
        ({"address": "", "round_trip_ms": 0.0, "error": "", "relayed_ms": 30.0}, False, "no address"),
        ({"address": "10.1.2.4", "round_trip_ms": 300.0, "error": "", "relayed_ms": 20.0}, False, "300 ms"),
    ],
)
def test_a_probe_decides_with_a_reason(probe: dict[str, object], is_direct: bool, words: str) -> None:
    """A way is direct when the door answers, and not much slower than the way through the user's side."""
    way = choose_way(**probe)  # type: ignore[arg-type]

    assert way.is_direct is is_direct
    assert words in way.reason


def holder(name: str = "a", **fields: object) -> Holder:
    return Holder(**{"lease_id": name, "name": name, "way": DIRECT, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("holders", "user_bytes_per_s", "source", "words"),
    [
        ([], 0.0, "", "no other node has it"),
        ([holder(way=Way())], 0.0, "", "would come twice"),
        ([holder()], 1e6, "a", "a has it"),
        ([holder(is_up=False)], 0.0, "", "silent"),
        ([holder(has_failed=True)], 0.0, "", "did not deliver"),
        ([holder(guests=2), holder("b")], 0.0, "b", "b has it"),
        ([holder(bytes_per_s=1e6)], 50e6, "", "comes quicker (50 MB/s)"),
        ([holder(bytes_per_s=60e6)], 50e6, "a", "a has it"),
        ([holder(has_failed=True), holder("b", guests=9)], 0.0, "b", "b has it"),
    ],
)
def test_an_input_comes_from_a_node_that_has_it_where_that_is_quicker(
    holders: list[Holder], user_bytes_per_s: float, source: str, words: str
) -> None:
    """From another node only directly, from one that delivers, and not where this side was measured to be quicker."""
    found = choose_source(holders, user_bytes_per_s=user_bytes_per_s)

    assert found.lease_id == source
    assert words in found.reason


def test_what_fails_is_tried_less_and_less_often() -> None:
    """Pauses double up to a quarter of an hour, so that a node knocks at no door again and again."""
    pauses = [plan.pause_s(failures) for failures in range(1, 12)]

    assert pauses[:3] == [15.0, 30.0, 60.0]
    assert pauses[-1] == plan.LONGEST_PAUSE_S
