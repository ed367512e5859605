"""Which differences of versions matter, and what is brought to mend them."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.nodes.setup import LookAnswer, PythonFacts, base_for, best, mismatch, pins_for
from jupyter_gpumarket.nodes.versions import DEMANDS, Versions, differences, numbers

OURS = {
    "cloudpickle": "3.1.2",
    "dask": "2026.8.0",
    "distributed": "2026.8.0",
    "msgpack": "1.2.4",
    "numpy": "2.4.6",
    "ipykernel": "7.4.0",
    "jupyter_client": "8.10.0",
    "msgspec": "0.22.0",
    "psutil": "7.2.2",
    "nvidia-ml-py": "13.615.71",
}
WANTED = Versions(python="3.11.7", packages=OURS)


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ({}, []),
        ({"dask": "2026.8.3"}, []),
        ({"dask": "2026.7.0"}, ["dask"]),
        ({"distributed": "2025.8.0"}, ["distributed"]),
        ({"cloudpickle": "3.0.0"}, ["cloudpickle"]),
        ({"cloudpickle": "3.1"}, []),
        ({"msgpack": "1.1.0"}, ["msgpack"]),
        ({"numpy": "2.0.1"}, []),
        ({"numpy": "1.26.4"}, ["numpy"]),
        ({"ipykernel": "6.29.5"}, []),
        ({"ipykernel": "6.9.2"}, ["ipykernel"]),
        ({"ipykernel": "8.0.0"}, []),
        ({"jupyter_client": "8.6.0"}, []),
        ({"jupyter_client": "7.4.9"}, ["jupyter_client"]),
        ({"msgspec": "0.18.6"}, ["msgspec"]),
        ({"psutil": "5.9.8"}, []),
        ({"psutil": ""}, ["psutil"]),
        ({"nvidia-ml-py": ""}, []),
        ({"dask": "nonsense"}, ["dask"]),
        ({"dask": "2026.7.0", "numpy": "1.26.4"}, ["dask", "numpy"]),
    ],
)
def test_only_differences_that_matter_are_told(change: dict[str, str], matters: list[str]) -> None:
    """The table of package rules: what may differ is no difference, what may not is named."""
    there = {name: version for name, version in {**OURS, **change}.items() if version}

    assert [d.name for d in differences(WANTED, Versions(python="3.11.2", packages=there))] == matters


@pytest.mark.parametrize(("python", "fits"), [("3.11.0", True), ("3.11.15", True), ("3.12.1", False), ("3.1.1", False)])
def test_python_has_to_be_of_the_same_minor_version(python: str, fits: bool) -> None:
    """3.11 is not 3.12, nor 3.1; the patch number does not matter."""
    assert (differences(WANTED, Versions(python=python, packages=OURS)) == []) is fits


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2.1.0rc1+cu121", (2, 1, 0)),
        ("2", (2, 0)),
        ("", (0, 0)),
        ("x", (0, 0)),
        ("9" * 40, (0, 0)),
        ("1.2.post1", (1, 2)),
    ],
)
def test_versions_are_read_as_numbers(text: str, expected: tuple[int, ...]) -> None:
    """Suffixes are dropped, and what is no version sorts below all (a node may write anything)."""
    assert numbers(text)[:3] == expected or numbers(text)[:2] == (999999999, 0)


def test_a_difference_says_what_is_where_and_why() -> None:
    """The words of a difference name both versions and the reason."""
    (found,) = differences(WANTED, Versions(python="3.11.1", packages={**OURS, "dask": "2024.1.0"}))

    assert str(found).startswith("dask 2024.1.0 on the node, 2026.8.0 here (")


def test_a_fitting_python_is_taken_and_the_running_agents_first() -> None:
    """The agent's own interpreter wins among those that fit; one that does not fit is never taken."""
    old = facts("/old", dask="2024.1.0")
    first, agents = facts("/first"), facts("/agents")

    assert best(WANTED, look(old, first, agents)) == first
    assert best(WANTED, look(old, first, agents, agent="/agents")) == agents
    assert best(WANTED, look(old, agent="/old")) is None


def test_an_interpreter_that_is_not_cpython_is_not_taken() -> None:
    """PyPy's byte code and extension modules are others."""
    assert best(WANTED, look(facts("/pypy", implementation="pypy"))) is None


def test_the_base_is_the_python_with_the_gpu_library() -> None:
    """Of several Pythons of the wanted version the one with torch is built upon, whatever its other versions."""
    plain, image = facts("/usr/bin/python3", dask="1.0"), facts("/opt/conda/bin/python", dask="1.0", torch="2.9.0")

    assert base_for(WANTED, look(plain, image)) == image
    assert base_for(WANTED, look(facts("/p", version="3.12.1"))) is None


def test_only_what_differs_is_installed_at_the_users_versions() -> None:
    """What the image has and fits stays; what differs or is missing is pinned to the user's version."""
    base = facts("/p", dask="2024.1.0", ipykernel="6.29.5", psutil="")

    assert pins_for(WANTED, base) == {"dask": "2026.8.0", "psutil": "7.2.2"}
    assert pins_for(WANTED, None) == OURS


def test_a_mismatch_tells_the_nearest_python_and_the_fix() -> None:
    """The message takes the interpreter with the fewest differences and gives a command for either side."""
    told = mismatch(WANTED, look(facts("/far", version="3.9.1", dask="1.0"), facts("/near", dask="1.0")), "node-1")

    assert told.startswith("/near on node-1 does not fit your side: dask 1.0 on the node")
    assert "(pip install dask==2026.8.0)" in told
    assert told.endswith("here: pip install dask==1.0")
    assert "no usable Python on node-1" in mismatch(WANTED, look(), "node-1")


def test_every_demand_has_a_reason() -> None:
    """Each package that a node needs says why."""
    assert all(demand.why for demand in DEMANDS.values())


def facts(path: str, *, version: str = "3.11.2", implementation: str = "cpython", **packages: str) -> PythonFacts:
    there = {name: pin for name, pin in {**OURS, **packages}.items() if pin}
    return PythonFacts(path=path, version=version, implementation=implementation, packages=there)


def look(*pythons: PythonFacts, agent: str = "") -> LookAnswer:
    return LookAnswer(pythons=pythons, agent_running=bool(agent), agent_python=agent)
