"""Command lines that marketplaces tell are read by a strict grammar."""

from __future__ import annotations

import pytest

from jupyter_gpumarket.marketplaces.ssh_command import address_in
from jupyter_gpumarket.models import NodeAddress

READ = {
    "ssh root@203.0.113.9 -p 20301": ("203.0.113.9", 20301, "root"),
    "ssh -p 31424 ubuntu@n1.example.org": ("n1.example.org", 31424, "ubuntu"),
    "root@1.2.3.4 -p 22": ("1.2.3.4", 22, "root"),
    "ssh ubuntu@example.org": ("example.org", 22, "ubuntu"),
    "ssh -i ~/.ssh/id -o StrictHostKeyChecking=no -p 7 u@h": ("h", 7, "u"),
    "ssh root@[2001:db8::1] -p 22": ("2001:db8::1", 22, "root"),
}
REFUSED = (
    None,
    "",
    "ssh",
    "ssh root@h -p",
    "ssh root@h -p 0",
    "ssh root@h -p 65536",
    "ssh root@h -p 1e3",
    "ssh root@h -p ٣",
    "ssh root@h; rm -rf /",
    "ssh root@h rm",
    "ssh -oProxyCommand=id root@h",
    "ssh -L 1:h:2 root@h",
    "ssh root@-oProxyCommand=id",
    "ssh root@h a@b",
    "ssh root@$(id)",
    "ssh root@h\x00",
    "ssh root@h." + "a" * 500,
)


@pytest.mark.parametrize("command", READ)
def test_a_plain_command_is_read(command: str) -> None:
    """User, host and port, in whatever order they come."""
    host, port, user = READ[command]

    assert address_in(command) == NodeAddress(host=host, port=port, user=user)


@pytest.mark.parametrize("command", REFUSED)
def test_anything_else_is_no_address(command: str | None) -> None:
    """What the grammar does not know leads nowhere."""
    assert address_in(command) is None
