"""Labels that only we can make, keys that are there only while they are needed, and offers that have one buyer."""

from __future__ import annotations

import random
import re
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jupyter_gpumarket.leases import KeyStore
from jupyter_gpumarket.leases.labels import is_ours, new_label
from jupyter_gpumarket.leases.locks import OfferLocks

SECRET = b"one installation"


def test_a_label_is_random_short_and_fit_for_dns() -> None:
    """Two labels differ, and each is at most 63 characters of a-z, 0-9 and hyphens."""
    rng = random.Random(1)
    labels = {new_label(SECRET, rng) for _ in range(1000)}

    assert len(labels) == 1000
    assert all(re.fullmatch(r"[a-z][a-z0-9-]{0,61}[a-z0-9]", label) for label in labels)


def test_a_label_is_known_by_its_mac_alone() -> None:
    """Ours is ours after a restart too; another installation's never is."""
    label = new_label(SECRET, random.Random(1))

    assert is_ours(SECRET, label)
    assert not is_ours(b"another installation", label)


@given(st.integers(0, 46), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567-"))
def test_a_changed_label_is_not_ours(place: int, letter: str) -> None:
    """One character is enough to lose the MAC."""
    label = new_label(SECRET, random.Random(1))
    changed = label[:place] + letter + label[place + 1 :]

    assert is_ours(SECRET, changed) == (changed == label)


@pytest.mark.parametrize("label", ["", "gpum-", "gpum-a-b", "colleague", "gpum-" + "a" * 26 + "-" + "a" * 16, "\x00"])
def test_what_only_looks_like_ours_is_not(label: str) -> None:
    """Never by prefix, never by shape."""
    assert not is_ours(SECRET, label)


def test_a_key_pair_is_private_and_fits_together(tmp_path: Path) -> None:
    """The private file is 0600, OpenSSH reads both halves, and they belong together."""
    keys = KeyStore(tmp_path / "keys")
    public = keys.create("lease-1")
    private = asyncssh.read_private_key(keys.path("lease-1"))

    assert keys.path("lease-1").stat().st_mode & 0o777 == 0o600
    assert private.export_public_key().split()[1] == public.encode().split()[1]
    assert public.startswith("ssh-ed25519 ")


def test_a_new_attempt_has_a_new_key(tmp_path: Path) -> None:
    """No key is ever shown to two machines."""
    keys = KeyStore(tmp_path / "keys")

    assert keys.create("lease-1") != keys.create("lease-1")


def test_a_wiped_key_is_gone_and_wiping_again_is_no_error(tmp_path: Path) -> None:
    """Nothing is left in the folder."""
    keys = KeyStore(tmp_path / "keys")
    keys.create("lease-1")
    keys.wipe("lease-1")
    keys.wipe("lease-1")

    assert list((tmp_path / "keys").iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "", "a/b", ".hidden", "a\x00b", "x" * 65])
def test_a_key_never_leaves_its_folder(tmp_path: Path, name: str) -> None:
    """What is not a lease's id becomes no path."""
    with pytest.raises(ValueError, match="not a lease id"):
        KeyStore(tmp_path / "keys").path(name)


def test_an_offer_has_one_buyer_until_it_lets_go() -> None:
    """The second has to wait; the first may ask again."""
    locks = OfferLocks()

    assert locks.take("fake", "o1", "a")
    assert locks.take("fake", "o1", "a")
    assert not locks.take("fake", "o1", "b")
    locks.free("a")
    assert locks.take("fake", "o1", "b")
