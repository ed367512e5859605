"""What may go into the path of a call."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.errors import ConfigError
from jupyter_gpumarket.marketplaces.identifiers import path_part

REFUSED = ["", ".", "..", "a/b", "a\\b", "a?b", "a#b", "a%2fb", "a b", "a\n", "é", "٣", "a" * 9, "a:b"]


@pytest.mark.parametrize("identifier", REFUSED)
def test_what_could_be_another_path_is_refused_by_name(identifier: str) -> None:
    """Also nothing at all, what is too long, and letters and digits of other scripts."""
    with pytest.raises(ConfigError, match="is not a pod of RunPod"):
        path_part(identifier, "a pod of RunPod", most=8)


@pytest.mark.parametrize("identifier", ["a-b", "a_b"])
def test_marks_are_only_those_that_a_marketplace_uses(identifier: str) -> None:
    """One whose identifiers are letters and digits gets nothing else."""
    assert path_part(identifier, "a pod") == identifier
    with pytest.raises(ConfigError):
        path_part(identifier, "a rental", marks="")


def test_a_refusal_is_short_however_long_the_identifier() -> None:
    """It may be a whole page that a marketplace sent."""
    with pytest.raises(ConfigError) as raised:
        path_part("x y" * 10_000, "a pod")

    assert len(str(raised.value)) < 200
