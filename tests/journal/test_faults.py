"""Disks and processes that fail under a journal: clear errors, nothing acknowledged lost, nothing half-written."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jupyter_gpumarket.api import JournalLine
from jupyter_gpumarket.errors import JournalCorrupt, JournalError, JournalFull, JournalLocked
from jupyter_gpumarket.journal import Journal, NewEntry
from jupyter_gpumarket.journal.store import CHECKED_AT_OPEN
from jupyter_gpumarket.models import LeaseState

from .records import SteppingClock, lease, wished

DEADLINE_S = 30


def released(number: int) -> NewEntry:
    return NewEntry(
        kind="lease.released", subject=f"lease-{number}", rows=(lease(number, LeaseState.RELEASED, reason="x" * 500),)
    )


def filled(file: Path, count: int = 30) -> list[str]:
    """A journal with entries, closed cleanly; their hashes-to-be, for comparing."""
    journal = Journal.open(f"sqlite:///{file}", SteppingClock())
    lines = [journal.append([wished(n), released(n)]) for n in range(count)]
    journal.close()
    return [str(line) for pair in lines for line in pair]


def opened_and_verified(url: str) -> list[str]:
    journal = Journal.open(url, SteppingClock())
    try:
        journal.verify()
        return [str(line) for line in journal.entries()]
    finally:
        journal.close()


# ── full disks ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 12 MiB."""
    if os.getuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m,mode=700", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this machine refuses mounts")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return ballast


def until_full(journal: Journal, number: int) -> list[JournalLine]:
    """Wishes that still found room."""
    lines: list[JournalLine] = []
    with contextlib.suppress(JournalFull):
        while True:
            lines += journal.append([wished(number + len(lines))])
    return lines


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room(small_disk: Path) -> None:
    """A wish is refused whole; after room was made the same journal goes on, without being opened again."""
    journal = Journal.open(f"sqlite:///{small_disk}/journal.sqlite", SteppingClock())
    acknowledged = list(journal.append([wished(1)]))
    ballast = fill(small_disk)
    acknowledged += until_full(journal, 2)

    with pytest.raises(JournalFull, match="Make room"):
        journal.append([wished(9_999)])
    assert journal.entries() == acknowledged
    ballast.unlink()
    acknowledged += journal.append([wished(len(acknowledged) + 1)])

    assert journal.entries() == acknowledged
    journal.verify()
    journal.close()


def test_a_full_disk_still_takes_what_ends_spending(small_disk: Path) -> None:
    """Room was set aside for it: a wish is refused, a release is recorded, and the room comes back later."""
    journal = Journal.open(f"sqlite:///{small_disk}/journal.sqlite", SteppingClock())
    assert not journal.tight
    ballast = fill(small_disk)
    until_full(journal, 0)

    for number in range(100):
        journal.append([released(number)])

    assert journal.tight
    assert journal.lease("lease-99") == released(99).rows[0]
    with pytest.raises(JournalFull, match="kept for ending leases"):
        journal.append([wished(20_000)])
    ballast.unlink()
    journal.append([wished(20_000)])
    assert not journal.tight
    journal.verify()
    journal.close()


def test_a_journal_cannot_be_made_on_a_full_disk(small_disk: Path) -> None:
    """The error says so, and leaves nothing that stops the next try."""
    ballast = fill(small_disk)
    url = f"sqlite:///{small_disk}/journal.sqlite"
    with pytest.raises(JournalError, match=r"full|room"):
        Journal.open(url, SteppingClock())

    ballast.unlink()
    journal = Journal.open(url, SteppingClock())
    assert journal.append([wished(1)])[0].seq == 1
    journal.close()


# ── no right to write, and other programs ────────────────────────────────────────────────────────────────────────────


def test_a_read_only_journal_is_refused_with_what_to_do(small_disk: Path) -> None:
    """On a disk mounted read-only, which stops root too."""
    url = f"sqlite:///{small_disk}/journal.sqlite"
    Journal.open(url, SteppingClock()).close()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)

    with pytest.raises(JournalError, match="writable"):
        Journal.open(url, SteppingClock())

    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    Journal.open(url, SteppingClock()).close()


def test_a_journal_that_another_program_writes_is_locked_and_then_goes_on(file: Path, url: str) -> None:
    """A forgotten sqlite3 shell: refused in a bounded time, whole; after it, the same journal goes on."""
    journal = Journal.open(url, SteppingClock())
    shell = sqlite3.connect(file, isolation_level=None)
    shell.execute("BEGIN IMMEDIATE")
    began = time.monotonic()

    with pytest.raises(JournalLocked, match="sqlite3 shell"):
        journal.append([wished(1)])

    assert time.monotonic() - began < DEADLINE_S
    assert journal.entries() == []
    shell.execute("ROLLBACK")
    shell.close()
    journal.append([wished(1)])
    journal.verify()
    journal.close()


def test_a_second_writer_is_fenced_off(file: Path, url: str) -> None:
    """Even where a lock was lost, two writers never both succeed: the end of the chain has moved."""
    journal = Journal.open(url, SteppingClock())
    journal.append([wished(1)])
    with sqlite3.connect(file) as other:
        other.execute("UPDATE journal_head SET seq = 2")
    other.close()

    with pytest.raises(JournalLocked, match="another program wrote"):
        journal.append([wished(2)])

    assert journal.lease("lease-2") is None
    journal.close()


def test_the_holder_of_the_lock_is_named(url: str, python: list[str]) -> None:
    """A real second process; after it was killed, the lock is free."""
    program = (
        "import sys; from jupyter_gpumarket.journal import Journal; from jupyter_gpumarket.clock import SystemClock; "
        "journal = Journal.open(sys.argv[1], SystemClock()); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([*python, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(JournalLocked, match=f"pid {other.pid} on"):
            Journal.open(url, SteppingClock())
        other.send_signal(signal.SIGKILL)
        other.wait(DEADLINE_S)

    Journal.open(url, SteppingClock()).close()


def test_a_journal_is_private_and_its_folder_is_left_alone(tmp_path: Path) -> None:
    """Its files are this user's only; a folder that others use keeps its rights."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    journal = Journal.open(f"sqlite:///{folder}/journal.sqlite", SteppingClock())
    journal.append([wished(1)])

    assert folder.stat().st_mode & 0o777 == 0o755
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()} == dict.fromkeys(
        (f"journal.sqlite{end}" for end in ("", "-wal", "-shm", ".lock", ".anchor", ".reserve")), "0o600"
    )
    journal.close()


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    """Under a file, for example."""
    (tmp_path / "file").write_text("x")

    with pytest.raises(JournalError, match="cannot be made"):
        Journal.open(f"sqlite:///{tmp_path}/file/state/journal.sqlite", SteppingClock())


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_another_file_is_not_taken_for_a_journal(file: Path, url: str) -> None:
    """Text, and another program's database, are refused and left alone."""
    file.parent.mkdir(parents=True, mode=0o700)
    file.write_text("this is a letter to a friend, and no database at all\n" * 20)
    with pytest.raises(JournalCorrupt, match="not a database"):
        Journal.open(url, SteppingClock())
    assert file.read_text().startswith("this is a letter")

    file.unlink()
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA application_id = 77")
        other.execute("CREATE TABLE entries (x)")
    other.close()
    with pytest.raises(JournalError, match="another program"):
        Journal.open(url, SteppingClock())


@pytest.mark.parametrize("kept", [0, 1, 100, 4096, 8192, 20_000, -4096, -1])
def test_a_truncated_journal_is_refused(file: Path, url: str, kept: int) -> None:
    """Cut anywhere, also to nothing: never taken for a shorter or a new journal."""
    filled(file)
    size = file.stat().st_size
    os.truncate(file, kept if kept >= 0 else size + kept)

    with pytest.raises(JournalCorrupt):
        opened_and_verified(url)


def test_a_deleted_journal_is_not_silently_begun_anew(file: Path, url: str) -> None:
    """What was acknowledged is missing; the message says how to accept that."""
    filled(file)
    file.unlink()

    with pytest.raises(JournalCorrupt, match=r"delete .*anchor"):
        Journal.open(url, SteppingClock())

    file.with_name(file.name + ".anchor").unlink()
    Journal.open(url, SteppingClock()).close()


def test_an_older_copy_is_refused(file: Path, url: str) -> None:
    """It is perfect in itself, and does not know the newest rentals."""
    filled(file, 3)
    copy = file.read_bytes()
    journal = Journal.open(url, SteppingClock())
    journal.append([wished(77)])
    journal.close()
    file.write_bytes(copy)

    with pytest.raises(JournalCorrupt, match="older copy"):
        Journal.open(url, SteppingClock())


def test_a_damaged_write_ahead_log_loses_nothing_silently(file: Path, url: str, tmp_path: Path) -> None:
    """SQLite drops what it cannot check at the log's end; the anchor notices."""
    journal = Journal.open(url, SteppingClock())
    for number in range(5):
        journal.append([wished(number)])
    crashed = tmp_path / "crashed"
    shutil.copytree(file.parent, crashed)
    journal.close()
    log = crashed / "journal.sqlite-wal"
    content = bytearray(log.read_bytes())
    content[-5000] ^= 1
    log.write_bytes(content)

    with pytest.raises(JournalCorrupt, match="its end is lost"):
        Journal.open(f"sqlite:///{crashed / file.name}", SteppingClock())


TAMPERINGS = {
    "an entry's body changed": "UPDATE entries SET body = '{}' WHERE seq = 3",
    "an entry's rows changed": "UPDATE entries SET rows = '[]' WHERE seq = 3",
    "an entry's time changed": "UPDATE entries SET at_ms = at_ms + 1 WHERE seq = 3",
    "an entry's number changed": "UPDATE entries SET seq = 99 WHERE seq = 3",
    "an entry deleted": "DELETE FROM entries WHERE seq = 3",
    "the last entry deleted": "DELETE FROM entries WHERE seq = 10",
    "all entries deleted": "DELETE FROM entries",
    "two entries swapped": "UPDATE entries SET seq = CASE seq WHEN 3 THEN -4 ELSE -3 END WHERE seq IN (3, 4); "
    "UPDATE entries SET seq = -seq WHERE seq < 0",
    "an entry forged at the end": "INSERT INTO entries SELECT 11, at_ms, kind, subject, body, rows, writer, hash FROM "
    "entries WHERE seq = 10; UPDATE journal_head SET seq = 11",
    "the head deleted": "DELETE FROM journal_head",
    "the head moved back": "UPDATE journal_head SET seq = 9",
}

ROW_TAMPERINGS = {
    "a lease's content changed": "UPDATE leases SET data = json_set(data, '$.price_nusd_hour', 1)",
    "a lease's state column changed": "UPDATE leases SET is_open = 1 WHERE lease_id = 'lease-1'",
    "a lease deleted": "DELETE FROM leases WHERE lease_id = 'lease-1'",
    "a lease forged": "INSERT INTO leases SELECT 'x', 'q', state, is_open, created_ms, data FROM leases LIMIT 1",
    "a lease that is no lease": "UPDATE leases SET data = '[1]'",
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_tampering_with_entries_is_refused(file: Path, url: str, what: str) -> None:
    """Changed, deleted, swapped or forged by hand: the journal is not opened."""
    filled(file, 5)
    by_hand(file, TAMPERINGS[what])

    with pytest.raises(JournalCorrupt):
        Journal.open(url, SteppingClock())


@pytest.mark.parametrize("what", ROW_TAMPERINGS)
def test_rows_that_were_tampered_with_are_made_right(
    file: Path, url: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The entries are the truth: on opening, the rows are computed again, and the log says so."""
    filled(file, 5)
    by_hand(file, ROW_TAMPERINGS[what])

    journal = Journal.open(url, SteppingClock())

    journal.verify()
    assert journal.leases() == [released(n).rows[0] for n in range(5)]
    assert "not what the entries say" in caplog.text
    journal.close()


@pytest.mark.parametrize("what", ROW_TAMPERINGS)
def test_rows_that_change_under_an_open_journal_are_found(file: Path, url: str, what: str) -> None:
    """`verify` names the row."""
    filled(file, 5)
    journal = Journal.open(url, SteppingClock())
    by_hand(file, ROW_TAMPERINGS[what])

    with pytest.raises(JournalCorrupt, match="of leases is not what the entries say"):
        journal.verify()
    journal.close()


def by_hand(file: Path, statements: str) -> None:
    with sqlite3.connect(file) as hand:
        hand.executescript(statements)
    hand.close()


@pytest.mark.slow
def test_a_huge_journal_is_checked_at_its_end_when_opened_and_wholly_by_verify(file: Path, url: str) -> None:
    """Damage among the newest entries is refused at once, older damage is found by `verify`."""
    journal = Journal.open(url, SteppingClock())
    journal.append([NewEntry(kind="test.fact", subject="x", body={"n": n}) for n in range(CHECKED_AT_OPEN + 50)])
    journal.close()
    by_hand(file, "UPDATE entries SET body = '{}' WHERE seq = 20")
    journal = Journal.open(url, SteppingClock())
    with pytest.raises(JournalCorrupt, match="entry 20 was changed"):
        journal.verify()
    journal.close()

    by_hand(file, "UPDATE entries SET body = '{}' WHERE seq = 9000")
    with pytest.raises(JournalCorrupt, match="entry 9000 was changed"):
        Journal.open(url, SteppingClock())


@pytest.mark.slow
def test_no_flipped_bit_passes_for_the_truth(file: Path, url: str) -> None:
    """Any one bit: the journal is refused, or every entry is as it was written."""
    expected = filled(file, 100)
    intact = file.read_bytes()
    rng = random.Random(20)
    undetected = 0
    for _ in range(250):
        position = rng.randrange(len(intact))
        content = bytearray(intact)
        content[position] ^= 1 << rng.randrange(8)
        file.write_bytes(content)
        for rest in ("-wal", "-shm"):
            file.with_name(file.name + rest).unlink(missing_ok=True)
        try:
            assert opened_and_verified(url) == expected, f"byte {position}"
            undetected += 1
        except JournalError:
            continue
    # Only unused space in pages may change unseen.
    assert undetected < 150


# ── kill -9 ──────────────────────────────────────────────────────────────────────────────────────────────────────────

WRITER = """
import sys
from jupyter_gpumarket.journal import Journal
from tests.journal.records import SteppingClock, wished
journal = Journal.open(sys.argv[1], SteppingClock())
number = journal.last_seq()
while True:
    number += 1
    print(journal.append([wished(number)])[0].seq, flush=True)
"""


@pytest.mark.slow
def test_a_killed_writer_loses_nothing_acknowledged(url: str, python: list[str]) -> None:
    """kill -9 in the middle of appends, again and again: every number told is there, and all is whole."""
    rng = random.Random(7)
    told = 0
    for _ in range(6):
        told = max(told, killed_after(rng.randrange(1, 120), [*python, "-c", WRITER, url]))
        journal = Journal.open(url, SteppingClock())
        assert journal.last_seq() >= told
        journal.verify()
        journal.close()
    assert told > 6


def killed_after(lines: int, command: list[str]) -> int:
    """Kill a writer after it told so many numbers; the last one it told."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as writer:
        assert writer.stdout is not None
        told = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.read().splitlines(keepends=True)
        writer.wait(DEADLINE_S)
    return max(int(line) for line in told if line.endswith(b"\n"))
