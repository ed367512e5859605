"""The certificate for a client of the user's own, as it lies on the disk."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path

from jupyter_gpumarket.cluster.authority import LIFE, new_authority
from jupyter_gpumarket.cluster.entrance import RENEW, certified

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = new_authority("test", NOW)


def read(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()}


def test_files_that_a_client_may_be_reading_are_never_changed(tmp_path: Path) -> None:
    """Asked again, also after a restart: the same files. A half-made set is none, and the key fits its certificate."""
    (tmp_path / "entrance" / ".draft").mkdir(parents=True)
    (tmp_path / "entrance" / ".draft" / "key.pem").write_bytes(b"half")
    first = certified(tmp_path, AUTHORITY, NOW)
    before = read(first)

    assert certified(tmp_path, AUTHORITY, NOW + dt.timedelta(days=1)) == first
    assert read(first) == before
    ssl.create_default_context(cafile=first / "ca.pem").load_cert_chain(first / "cert.pem", first / "key.pem")
    assert (first.stat().st_mode | (first / "key.pem").stat().st_mode) & 0o077 == 0


def test_a_certificate_is_renewed_before_it_ends(tmp_path: Path) -> None:
    """The new one lies elsewhere, and the former one stays as long as it is good."""
    first = certified(tmp_path, AUTHORITY, NOW)
    late = NOW + LIFE - RENEW + dt.timedelta(days=1)
    second = certified(tmp_path, AUTHORITY, late)

    assert second != first
    assert first.exists()
    assert certified(tmp_path, AUTHORITY, NOW + LIFE + dt.timedelta(days=1)) == second
    assert not first.exists()


def test_a_new_authority_hands_out_nothing_of_the_former_one(tmp_path: Path) -> None:
    """Whose certificates nobody accepts any more."""
    first = certified(tmp_path, AUTHORITY, NOW)
    second = certified(tmp_path, new_authority("test", NOW), NOW)

    assert second != first
    assert not first.exists()
