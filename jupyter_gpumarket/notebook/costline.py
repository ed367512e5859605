"""The one line under a cell: where it runs, for how long, and what that costs; live, then final to the nano-dollar."""

from __future__ import annotations

from typing import Any

import msgspec

from jupyter_gpumarket.api import RunCost
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import Clock, in_words
from jupyter_gpumarket.models import Lease, RunStatus
from jupyter_gpumarket.money import cost_nusd, format_usd
from jupyter_gpumarket.notebook.stage import Stage, as_html

UPDATE_EVERY_S = 0.5
# Front ends find a run by this key in the metadata of the line's display, and keep it under the same one with the cell.
METADATA_KEY = "jupyter_gpumarket"

MARKS = {
    RunStatus.OK: "done",
    RunStatus.ERROR: "failed",
    RunStatus.INTERRUPTED: "interrupted",
    RunStatus.TIMED_OUT: "timed out",
    RunStatus.LOST: "lost",
    RunStatus.RUNNING: "running",
    RunStatus.QUEUED: "waiting",
}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """The node as the cost line names it."""

    name: str
    gpu: str
    rate_nusd_hour: int


def place_of(lease: Lease) -> Place:
    """The node of a lease: its name, what computes, and the price."""
    return Place(name=one_line(lease.name, 60), gpu=gpu_words(lease), rate_nusd_hour=lease.price_nusd_hour)


def gpu_words(lease: Lease) -> str:
    """`2 × RTX 4090`, or `CPU` on a machine without a GPU."""
    offer = lease.offer
    if offer is None or not offer.gpu_count:
        return "CPU"
    name = one_line(offer.gpu or offer.gpu_raw or "GPU", 40)
    return name if offer.gpu_count == 1 else f"{offer.gpu_count} × {name}"


def live_text(place: Place, elapsed_ms: int, state: str) -> str:
    """The line while the cell runs: the cost is its time at the lease's rate so far."""
    so_far = format_usd(cost_nusd(place.rate_nusd_hour, max(0, elapsed_ms)), places=6)
    rate = format_usd(place.rate_nusd_hour)
    return f"{place.name} · {place.gpu} · {in_words(elapsed_ms / 1000)} · {so_far} so far · {rate}/h · {state}"


def final_text(place: Place, cost: RunCost) -> str:
    """The line once the cell has ended. Without `final`, the amount is marked as what is known so far."""
    mark = "" if cost.final else " so far"
    return (
        f"{place.name} · {place.gpu} · {in_words(cost.duration_ms / 1000)} · {format_usd(cost.amount_nusd)}{mark}"
        f" · {format_usd(cost.rate_nusd_hour)}/h · {MARKS[cost.run.status]}"
        f" · node so far {format_usd(cost.lease_total_nusd)}"
        f" (boot {format_usd(cost.lease_boot_nusd)}, idle {format_usd(cost.lease_idle_nusd)})"
    )


class CostLine:
    """The line in one display, changed in place; in a terminal only its last state is written."""

    def __init__(self, stage: Stage, display_id: str, clock: Clock) -> None:
        self._stage = stage
        self._display_id = display_id
        self._clock = clock
        self._shown_s = float("-inf")
        self._is_placed = False
        self._last = ""
        self._about: dict[str, Any] = {}

    def announce(self, run_id: str, node: str, *, amount_nusd: int | None = None, final: bool = False) -> None:
        """Which run the line is about, and what it cost: told to front ends with every state from now on."""
        about = {"run_id": run_id, "node": node, "amount_nusd": amount_nusd, "final": final}
        self._about = {METADATA_KEY: about}

    def live(self, text: str) -> None:
        """Show a passing state, at most twice a second."""
        if not self._stage.is_rich or text == self._last:
            return
        if self._clock.monotonic_s() - self._shown_s < UPDATE_EVERY_S:
            return
        self._put(text)

    def final(self, text: str) -> None:
        """Show the last state."""
        if self._stage.is_rich:
            self._put(text)
        else:
            self._stage.say(f"[{text}]")

    def place_again(self) -> None:
        """After the cell's output was cleared: the line is put back as it was."""
        self._is_placed = False
        if self._last and self._stage.is_rich:
            self._put(self._last)

    def _put(self, text: str) -> None:
        data = {"text/plain": text, "text/html": f"<small>{as_html(text)}</small>"}
        self._stage.publish(data, self._about, display_id=self._display_id, update=self._is_placed)
        self._is_placed = True
        self._last = text
        self._shown_s = self._clock.monotonic_s()
