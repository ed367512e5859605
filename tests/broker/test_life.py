"""How the broker process lives and ends."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from jupyter_gpumarket import client
from jupyter_gpumarket.api import API_VERSION
from jupyter_gpumarket.broker.process import EXIT_ALREADY_RUNNING
from jupyter_gpumarket.client import start
from jupyter_gpumarket.config import Folders, write_private
from jupyter_gpumarket.errors import BrokerUnavailable, ConfigError, GpuMarketError, JournalTooNew
from tests.broker.running import broker_of, brokers_of, end_processes, ended, folders_in, request, until

pytestmark = pytest.mark.slow


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return folders_in(tmp_path)


DOOR = """
import sys, pathlib
from jupyter_gpumarket import client
from jupyter_gpumarket.config import Folders
folders = Folders(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
print(client.connect(folders, timeout_s=60).health().pid)
"""


def test_doors_that_start_at_once_share_one_broker(folders: Folders) -> None:
    """Five processes and threads that find no broker end up with the same one, and the others have left."""
    argv = [sys.executable, "-c", DOOR, str(folders.state), str(folders.configuration)]
    try:
        doors = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(3)]
        with ThreadPoolExecutor() as threads:
            here = list(threads.map(lambda _: client.connect(folders, timeout_s=60).health().pid, range(2)))
        pids = {int(door.communicate(timeout=60)[0]) for door in doors} | set(here)

        assert len(pids) == 1
        until("the others have left", lambda: [p.pid for p in brokers_of(folders)] == list(pids))
    finally:
        end_processes(folders)


def test_sigterm_ends_it_cleanly(folders: Folders) -> None:
    """On SIGTERM the broker withdraws its file, gives the lock back and exits; the journal opens again."""
    with broker_of(folders) as door:
        first = door.health().pid
        os.kill(first, signal.SIGTERM)
        until("it has ended", lambda: ended(first))
        gone = not folders.broker_file.exists()
        second = door.health().pid

        assert gone
        assert second != first


def test_a_broker_leaves_anothers_file_alone(folders: Folders) -> None:
    """Where the state folder was made anew under a running broker, its end does not hide the new broker."""
    with broker_of(folders) as door:
        first = door.health().pid
        other = folders.broker_file.read_bytes().replace(str(first).encode(), b"1")
        write_private(folders.broker_file, other)
        os.kill(first, signal.SIGTERM)
        until("it has ended", lambda: ended(first))

        assert folders.broker_file.read_bytes() == other


def test_shutdown_route_ends_it(folders: Folders) -> None:
    """A door can end the broker; asked again, without one running, it is an error that says so."""
    with broker_of(folders) as door:
        pid = door.health().pid
        door.shutdown()
        until("it has ended", lambda: ended(pid))
        with pytest.raises(BrokerUnavailable, match="no broker runs"):
            client.connect(folders, start=False)


def test_after_kill_9_the_next_call_goes_through(folders: Folders) -> None:
    """A door whose broker is killed gets its answer from the next one, and the journal has kept everything."""
    with broker_of(folders) as door:
        view = door.wish(request())
        os.kill(door.health().pid, signal.SIGKILL)

        assert door.lease(view.lease.lease_id).lease.request == view.lease.request
        assert door.wish(request()).lease.lease_id == view.lease.lease_id
        assert folders.broker_file.exists()


def test_a_stopped_broker_is_explained(folders: Folders) -> None:
    """A broker that hangs (SIGSTOP) is neither waited for without end nor doubled: the error says what to do."""
    with broker_of(folders) as door:
        pid = door.health().pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(BrokerUnavailable, match=f"kill -CONT {pid}"):
                client.connect(folders)
        finally:
            os.kill(pid, signal.SIGCONT)

        assert door.health().pid == pid
        assert [p.pid for p in brokers_of(folders)] == [pid]


def test_a_second_broker_leaves_at_once(folders: Folders) -> None:
    """Started by hand beside a running one, a broker exits with its own code and changes nothing."""
    with broker_of(folders) as door:
        said = folders.broker_file.read_bytes()
        argv = ["-m", "jupyter_gpumarket.broker", "--state", str(folders.state)]
        second = subprocess.run(
            [sys.executable, *argv, "--configuration", str(folders.configuration)], timeout=60, check=False
        )

        assert second.returncode == EXIT_ALREADY_RUNNING == start.ALREADY_RUNNING
        assert folders.broker_file.read_bytes() == said
        assert door.health().pid


def test_changed_settings_count_at_the_next_call(folders: Folders) -> None:
    """With nothing rented, a broker whose settings were changed gives way to one that has read them."""
    with broker_of(folders) as door:
        first = door.health()
        write_private(folders.settings_file, b'[marketplaces.pool]\nurl = "http://127.0.0.1:1"\n')
        write_private(folders.configuration / "pool.key", b"a-key-of-nobody")
        until("it has ended", lambda: ended(first.pid))

        assert door.health().marketplaces == ("pool",)
        assert first.marketplaces == ()


def test_it_stops_by_itself_when_idle(folders: Folders) -> None:
    """With nothing rented and nobody calling for `broker_idle_s`, it ends; while doors call, it stays."""
    write_private(folders.settings_file, b"broker_idle_s = 2.0\n")
    with broker_of(folders) as door:
        pid = door.health().pid
        begin = time.monotonic()
        while time.monotonic() - begin < 4:
            assert door.health().pid == pid
            time.sleep(0.3)
        until("it stops by itself", lambda: ended(pid), 15)

        assert not folders.broker_file.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"not json",
        b'{"url": "http://127.0.0.1:1", "token": "x", "pid": 999999}',
        b'{"url": "http://127.0.0.1:1", "token": "x", "pid": 1, "version": "0", "api_version": %d}' % API_VERSION,
    ],
)
def test_a_stale_broker_file_is_seen_through(folders: Folders, content: bytes) -> None:
    """A file left over from a dead broker does not keep a new one from starting."""
    write_private(folders.broker_file, content)
    with broker_of(folders) as door:
        assert door.health().pid == msgspec.json.decode(folders.broker_file.read_bytes())["pid"]


def test_somebody_else_on_the_port_is_not_taken_for_the_broker(folders: Folders, tmp_path: Path) -> None:
    """A stale file whose port now belongs to another broker (another token) leads to a broker of our own."""
    other = folders_in(tmp_path / "other")
    with broker_of(other) as stranger:
        said = msgspec.json.decode(other.broker_file.read_bytes())
        write_private(folders.broker_file, msgspec.json.encode({**said, "token": "stale"}))
        with broker_of(folders) as door:
            assert door.health().pid != stranger.health().pid
            assert door.health().state_folder == str(folders.state)


def test_a_broker_of_another_api_version_is_explained(folders: Folders) -> None:
    """A door that speaks another version than the running broker says so, and how to go on."""
    with broker_of(folders):
        said = msgspec.json.decode(folders.broker_file.read_bytes())
        write_private(folders.broker_file, msgspec.json.encode({**said, "api_version": 99, "version": "9.9"}))
        with pytest.raises(BrokerUnavailable, match=rf"9\.9.*kill {said['pid']}.*leases go on"):
            client.connect(folders)


def test_wrong_settings_are_told_through_the_door(folders: Folders) -> None:
    """A setting that cannot be read reaches the caller as a ConfigError that names it."""
    write_private(folders.settings_file, b"hours = 'many'\n")
    with pytest.raises(ConfigError, match="hours"):
        client.connect(folders)
    end_processes(folders)


def test_a_journal_from_a_newer_version_is_told_through_the_door(folders: Folders) -> None:
    """The broker refuses it, and the caller gets JournalTooNew, not a time-out."""
    with broker_of(folders):
        pass
    database = sqlite3.connect(folders.journal_file)
    assert database.execute("UPDATE journal_version SET major = 99").rowcount == 1
    database.commit()
    database.close()
    with pytest.raises(JournalTooNew):
        client.connect(folders)
    end_processes(folders)


def test_the_lock_file_on_a_strange_place_is_told(tmp_path: Path) -> None:
    """A lock that cannot be opened ends in an error with its reason, not in silence."""
    folders = folders_in(tmp_path)
    folders.broker_lock.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GpuMarketError, match="lock"):
        client.connect(folders)
    assert not (tmp_path / "elsewhere").exists()
    end_processes(folders)


def test_the_log_never_follows_a_planted_link(tmp_path: Path) -> None:
    """A symbolic link in the place of the log is refused, and its target stays untouched."""
    folders = folders_in(tmp_path)
    target = tmp_path / "precious"
    target.write_text("mine")
    folders.broker_log.symlink_to(target)
    with pytest.raises((GpuMarketError, OSError)):
        client.connect(folders)
    assert target.read_text() == "mine"
    end_processes(folders)


def test_detached_from_the_door(folders: Folders) -> None:
    """The broker has a session of its own and no terminal, so that no Ctrl-C and no closed window reaches it."""
    with broker_of(folders) as door:
        pid = door.health().pid

        assert os.getsid(pid) == pid
        assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
        assert Path(f"/proc/{pid}/fd/0").readlink() == Path("/dev/null")
        assert stat.S_IMODE(folders.broker_log.stat().st_mode) == 0o600
