"""Which agents share a loopback."""

from __future__ import annotations

from pathlib import Path

from jupyter_gpumarket.agent.network import loopback_id


def card(folder: Path, name: str, address: str, *, is_hardware: bool) -> None:
    """A network card as /sys/class/net shows it."""
    (folder / name).mkdir(parents=True)
    (folder / name / "address").write_text(f"{address}\n")
    if is_hardware:
        (folder / name / "device").symlink_to(folder)


def test_a_containers_card_that_comes_later_does_not_tell_agents_of_one_loopback_apart(tmp_path: Path) -> None:
    """An agent that began before a container was started shares its loopback with one that began after."""
    card(tmp_path, "eth0", "52:54:00:00:00:01", is_hardware=True)
    before = loopback_id(tmp_path)
    card(tmp_path, "veth4711", "9a:00:00:00:00:02", is_hardware=False)
    assert loopback_id(tmp_path) == before != ""


def test_a_machine_that_was_cloned_while_it_ran_has_another_loopback(tmp_path: Path) -> None:
    """The kernel's boot and the namespace are the same there; the cards of the machine are not."""
    card(tmp_path / "one", "eth0", "52:54:00:00:00:01", is_hardware=True)
    card(tmp_path / "other", "eth0", "52:54:00:00:00:02", is_hardware=True)
    assert loopback_id(tmp_path / "one") != loopback_id(tmp_path / "other")
