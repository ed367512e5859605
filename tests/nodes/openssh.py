"""A real OpenSSH server for the tests: its own keys, folder and port; in a network namespace where one is named."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import asyncssh
import pytest

from jupyter_gpumarket.models import NodeAddress
from jupyter_gpumarket.nodes import NodeLink

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"


def require_sshd() -> None:
    """Skip visibly where there is no sshd; in CI that is a failure, so that nobody believes these tests ran."""
    if not Path(SSHD).exists():
        if os.environ.get("CI"):
            pytest.fail("sshd is not installed; install openssh-server")
        pytest.skip("sshd is not installed (package openssh-server)")


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


class Sshd:
    """One sshd. `key_path` is the private key that it lets in."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "127.0.0.1",
        namespace: str = "",
        settings: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.host = host
        self.namespace = namespace
        self.settings = settings
        self.environment = environment or {}
        self.port = 22 if namespace else free_port(host)
        self.key_path = folder / "lease_key"
        key = asyncssh.generate_private_key("ssh-ed25519")
        key.write_private_key(str(self.key_path))
        self.key_path.chmod(0o600)
        (folder / "authorized_keys").write_bytes(key.export_public_key())
        self.process: subprocess.Popen[bytes] | None = None
        self.new_host_key()

    def new_host_key(self, kind: str = "ssh-ed25519") -> None:
        """Another host key from the next start on."""
        key = asyncssh.generate_private_key(kind)
        file = self.folder / "host_key"
        file.unlink(missing_ok=True)
        file.write_bytes(key.export_private_key())
        file.chmod(0o600)
        self.host_key = " ".join(key.export_public_key().decode().split()[:2])

    def start(self) -> Sshd:
        require_sshd()
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        config = self.folder / "sshd_config"
        (self.folder / "home").mkdir(exist_ok=True)
        environment = {"HOME": str(self.folder / "home"), **self.environment}
        lines = (
            *self.settings,
            # A home of its own: neither the tester's shell start-up files nor their folders are touched.
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in environment.items()),
            f"ListenAddress {self.host}",
            f"Port {self.port}",
            f"HostKey {self.folder / 'host_key'}",
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}",
            f"PidFile {self.folder / 'sshd.pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "PermitUserEnvironment yes",
            "MaxStartups 100",
            "LogLevel VERBOSE",
        )
        config.write_text("\n".join(lines) + "\n")
        argv = [SSHD, "-D", "-e", "-f", str(config)]
        if self.namespace:
            argv = ["ip", "netns", "exec", self.namespace, *argv]
        heard = self.log().count("Server listening")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 15
        while self.log().count("Server listening") <= heard:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)
        return self

    def log(self) -> str:
        file = self.folder / "log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(10)
            self.process = None

    def address(self, *, host_key: str | None = None) -> NodeAddress:
        return NodeAddress(host=self.host, port=self.port, user=getpass.getuser(), host_key=host_key)

    def link(self, **options: object) -> NodeLink:
        """A link to it, with its key pinned unless `host_key` says otherwise."""
        options.setdefault("host_key", self.host_key)
        return NodeLink(self.address(), key_path=self.key_path, **options)  # type: ignore[arg-type]
