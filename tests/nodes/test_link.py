"""The link against a real OpenSSH server on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest

from jupyter_gpumarket.errors import CommandFailed, HostKeyChanged, NodeError, Unreachable
from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink, backoff_s
from tests.nodes.openssh import Sshd, free_port


async def test_a_command_gets_its_input_and_gives_output_and_exit_code(link: NodeLink) -> None:
    """`run` passes input on and returns both outputs and the exit code."""
    result = await link.run("cat; echo no >&2; exit 3", input=b"\x00\xff in", timeout_s=10, check=False)

    assert (result.stdout, result.stderr, result.exit_code) == (b"\x00\xff in", b"no\n", 3)


async def test_a_failed_command_tells_its_exit_code_and_last_lines(link: NodeLink) -> None:
    """With `check`, a failure is an error that carries code and words."""
    with pytest.raises(CommandFailed, match="no such GPU") as caught:
        await link.run("echo no such GPU >&2; exit 7", timeout_s=10)

    assert caught.value.exit_code == 7


async def test_a_command_that_does_not_end_is_stopped(link: NodeLink, tmp_path: Path) -> None:
    """After `timeout_s` the remote process is gone, and the link goes on working."""
    pid_file = tmp_path / "pid"
    with pytest.raises(CommandFailed, match="did not end within"):
        await link.run(f"echo $$ >{pid_file}; exec sleep 600", timeout_s=1)

    await gone(int(pid_file.read_text()))
    assert (await link.run("echo on", timeout_s=10)).stdout == b"on\n"


async def test_output_without_end_is_cut_off(link: NodeLink) -> None:
    """More output than allowed is an error, at once and in little memory; the link goes on working."""
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="printed more than 1000000 bytes"):
        await link.run("yes", timeout_s=60, max_output_bytes=1_000_000)

    assert time.monotonic() - started < 20
    assert (await link.run("echo on", timeout_s=10)).stdout == b"on\n"


@pytest.mark.parametrize("name", ["plain", "with 'quotes' and $HOME; `x`"])
async def test_put_writes_a_private_file_as_a_whole(link: NodeLink, tmp_path: Path, name: str) -> None:
    """`put` makes a file of the asked mode with exactly these bytes, and leaves nothing beside it."""
    content = bytes(range(256)) * 5000
    folder = tmp_path / "there"
    folder.mkdir()

    await link.put(content, str(folder / name))

    assert (folder / name).read_bytes() == content
    assert (folder / name).stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in folder.iterdir()] == [name]


async def test_put_into_no_folder_says_which_file(link: NodeLink, tmp_path: Path) -> None:
    """A file that cannot be written is an error that names it."""
    with pytest.raises(CommandFailed, match="nowhere/x"):
        await link.put(b"x", str(tmp_path / "nowhere" / "x"))


async def test_put_cut_short_leaves_the_old_file(sshd: Sshd, tmp_path: Path) -> None:
    """A link that breaks in the middle of `put` changes nothing on the node."""
    target = tmp_path / "target"
    target.write_bytes(b"old")
    link = sshd.link()
    await link.connect()
    task = asyncio.create_task(link.put(bytes(200_000_000), str(target)))
    while not any(part.stat().st_size > 1_000_000 for part in tmp_path.glob("target.*.part")):
        await asyncio.sleep(0.01)

    link.abort()

    with pytest.raises(Unreachable):
        await task
    deadline = time.monotonic() + 10
    while list(tmp_path.glob("target.*.part")):
        assert time.monotonic() < deadline, "the part file was left"
        await asyncio.sleep(0.05)
    assert target.read_bytes() == b"old"


async def test_a_stream_carries_bytes_both_ways(link: NodeLink) -> None:
    """`open_stream` is binary and ordered, and ends when the command does."""
    reader, writer = await link.open_stream("cat")
    sent = bytes(range(256)) * 4096
    writer.write(sent)
    await writer.drain()
    got = b""
    while len(got) < len(sent):
        got += await reader.read(65536)
    writer.close()

    assert got == sent
    assert await reader.read(1) == b""


async def test_large_data_goes_without_empty_packets(link: NodeLink) -> None:
    """2 MiB are the 64 packets that they fill, and a few for beginning and end: none before each of them."""
    connection = link._connection
    assert connection is not None
    before = connection._send_seq

    result = await link.run("wc -c", input=bytes(2 * 2**20), timeout_s=30)

    assert result.stdout.split() == [b"2097152"]
    assert 64 <= connection._send_seq - before < 100


async def test_first_sight_is_recorded_and_pinned(sshd: Sshd) -> None:
    """Without a recorded key the one that is shown is taken, marked as first sight, and holds from then on."""
    link = sshd.link(host_key=None)
    await link.connect()
    link.abort()

    assert (link.first_sight, link.host_key) == (True, sshd.host_key)
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    with pytest.raises(HostKeyChanged):
        await link.connect()


async def test_a_pinned_key_is_no_first_sight(sshd: Sshd) -> None:
    """A key that the marketplace told is checked, not learned."""
    link = NodeLink(sshd.address(host_key=sshd.host_key), key_path=sshd.key_path)
    await link.connect()
    await link.aclose()

    assert not link.first_sight


@pytest.mark.parametrize("kind", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
async def test_a_changed_host_key_is_refused_with_both_fingerprints(sshd: Sshd, kind: str) -> None:
    """Another key, of the same or another kind, is HostKeyChanged: both fingerprints, what to do, no login."""
    link = sshd.link()
    old = fingerprint(sshd.host_key)
    sshd.stop()
    sshd.new_host_key(kind)
    sshd.start()

    with pytest.raises(HostKeyChanged) as caught:
        await link.connect()

    assert old in str(caught.value)
    assert fingerprint(sshd.host_key) in str(caught.value)
    assert "Release this lease" in str(caught.value)
    assert "Accepted publickey" not in sshd.log()


async def test_a_refused_key_is_told_apart_from_an_unreachable_node(sshd: Sshd) -> None:
    """A server that refuses the lease's key gives NodeError, not Unreachable."""
    (sshd.folder / "authorized_keys").write_text("")

    with pytest.raises(NodeError, match="refuses the lease's key") as caught:
        await sshd.link().connect()

    assert not isinstance(caught.value, Unreachable)


async def test_nobody_listening_is_unreachable(tmp_path: Path, sshd: Sshd) -> None:
    """A closed port is Unreachable, and the message names the address."""
    address = NodeAddress(host="127.0.0.1", port=free_port(), user="x")

    with pytest.raises(Unreachable, match="x@127"):
        await NodeLink(address, key_path=sshd.key_path).connect()


async def test_a_lost_connection_is_seen_and_can_be_made_anew(sshd: Sshd) -> None:
    """When the server goes, `wait_closed` says so and calls fail; `connect` brings the link back."""
    link = sshd.link()
    await link.connect()
    pid = int((await link.run("echo $PPID", timeout_s=10)).stdout)
    await kill_behind(link, pid)

    assert await asyncio.wait_for(link.wait_closed(), 10)
    assert not link.connected
    with pytest.raises(Unreachable):
        await link.run("true", timeout_s=5)
    await link.connect()
    assert (await link.run("echo back", timeout_s=10)).stdout == b"back\n"
    await link.aclose()


async def test_abort_ends_everything_at_once(link: NodeLink) -> None:
    """`abort` makes a running command fail as Unreachable without waiting for the node."""
    task = asyncio.create_task(link.run("sleep 600", timeout_s=600))
    await asyncio.sleep(0)
    link.abort()

    with pytest.raises(Unreachable):
        await asyncio.wait_for(task, 5)


@pytest.mark.parametrize(
    "settings",
    [
        ("AllowTcpForwarding no", "AllowStreamLocalForwarding no", "AllowAgentForwarding no", "DisableForwarding yes"),
        ("PermitTTY no",),
        ("Subsystem nothing /bin/false",),
        ("Compression yes", "Banner /etc/passwd"),
    ],
    ids=["no forwarding", "no terminal", "no SFTP", "banner"],
)
async def test_narrow_servers_are_enough(tmp_path: Path, settings: tuple[str, ...]) -> None:
    """Run, put and streams need neither forwarding, nor a terminal, nor an SFTP subsystem."""
    server = Sshd(tmp_path / "sshd", settings=settings).start()
    try:
        link = server.link()
        await link.connect()
        await link.put(b"content", str(tmp_path / "file"))
        reader, writer = await link.open_stream("cat")
        writer.write(b"hello")

        assert (tmp_path / "file").read_bytes() == b"content"
        assert await reader.read(100) == b"hello"
        await link.aclose()
    finally:
        server.stop()


async def test_the_cipher_is_aes_gcm(link: NodeLink) -> None:
    """AES-GCM in both directions, no compression: asyncssh would take ChaCha20 by itself."""
    assert link._connection is not None
    facts = [link._connection.get_extra_info(name) for name in ("send_cipher", "recv_cipher", "send_compression")]

    assert facts == ["aes128-gcm@openssh.com", "aes128-gcm@openssh.com", "none"]


async def test_a_server_without_safe_ciphers_is_refused(tmp_path: Path) -> None:
    """A server that offers only CBC gets no connection."""
    server = Sshd(tmp_path / "sshd", settings=("Ciphers aes128-cbc",)).start()
    try:
        with pytest.raises(NodeError, match="no safe algorithm"):
            await server.link().connect()
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("host", "-oProxyCommand=touch x"),
        ("host", "a b"),
        ("host", "host\nuser"),
        ("host", "$(reboot)"),
        ("host", "a;b"),
        ("host", "[::1]"),
        ("host", "fe80::1%eth0"),
        ("host", ""),
        ("host", "a" * 300),
        ("host", "ho\u202est"),
        ("user", "-oProxyCommand=x"),
        ("user", "root;id"),
        ("user", "ro ot"),
        ("user", "$(id)"),
        ("user", "root\n"),
        ("user", ""),
        ("port", 0),
        ("port", 65536),
        ("port", -22),
    ],
)
def test_addresses_that_are_none_are_refused(tmp_path: Path, field: str, value: object) -> None:
    """Hosts, users and ports of an answer that carry options, shell or control characters are refused by name."""
    good = {"host": "node-1.example.org", "port": 22, "user": "root"}

    with pytest.raises(NodeError, match=field):
        NodeLink(NodeAddress(**{**good, field: value}), key_path=tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("host", ["10.0.0.7", "::1", "2001:db8::7", "node-1.example.org", "ssh5.vast.ai"])
def test_real_addresses_are_taken(tmp_path: Path, host: str) -> None:
    """Addresses and names as marketplaces give them are accepted."""
    assert NodeLink(NodeAddress(host=host, port=22, user="root"), key_path=tmp_path).address.host == host


def test_back_off_grows_to_a_bound_and_is_spread() -> None:
    """Each wait is at most twice the last, never over 30 s, and jitter shortens it by at most a quarter."""
    waits = [backoff_s(attempt, 0.0) for attempt in range(2000)]

    assert waits[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(waits) == 30.0
    assert backoff_s(3, 1.0) == 3.0
    assert backoff_s(-5, 9.0) == 0.375


def fingerprint(line: str) -> str:
    import asyncssh

    return asyncssh.import_public_key(line).get_fingerprint()


async def gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        await asyncio.sleep(0.05)


async def kill_behind(link: NodeLink, pid: int) -> None:
    """End the server process of this very connection."""
    with contextlib.suppress(Unreachable, CommandFailed):
        await link.run(f"kill {pid}", timeout_s=10)
