"""Following cell runs: their messages into this cell as they come, the cost line beside them, Ctrl-C passed on.

What is read here is already on the user's disk (the cluster process puts it there first), so this may stop at any point
and be begun again from number one: `%gpu attach` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from jupyter_gpumarket.api import MessageBatch, RunRequest, RunView
from jupyter_gpumarket.cleaning.messages import (
    Clear,
    MessageCleaner,
    Shown,
    Truncated,
    coalesce,
)
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.client import ClusterClient
from jupyter_gpumarket.clock import Clock, in_words
from jupyter_gpumarket.errors import BrokerUnavailable, GpuMarketError, Unreachable
from jupyter_gpumarket.models import ENDED_RUNS, Notice, RunStatus
from jupyter_gpumarket.notebook.costline import CostLine, Place, live_text
from jupyter_gpumarket.notebook.forecast import GraphForecast
from jupyter_gpumarket.notebook.interrupts import InterruptWatch
from jupyter_gpumarket.notebook.stage import Stage

WAIT_S = 0.5
FORECAST_EVERY_S = 1.0
MIN_FRAME_S = 0.05  # at most twenty frames a second, however fast a node prints
PATIENCE_S = 120.0  # how long the cluster process may be away before we say so and stop


class Detached(KeyboardInterrupt):
    """A second Ctrl-C: the remote cell goes on by itself."""


class Followed:
    """One run, and how far it has been shown. With a `request`, it is begun when it is first looked at."""

    def __init__(
        self,
        run_id: str,
        cluster: ClusterClient,
        place: Place,
        *,
        trusted: bool = False,
        prefix: str = "",
        request: RunRequest | None = None,
    ) -> None:
        self.run_id = run_id
        self.cluster = cluster
        self._request = request
        self._shown_s = float("-inf")
        self.place = place
        self.prefix = prefix
        self.after = 0
        self.view: RunView | None = None
        self.link = "up"
        self.link_detail = ""
        self.forecast: GraphForecast | None = None
        self.link_lost_ms: int | None = None
        self.away_since_s: float | None = None
        self._cleaner = MessageCleaner(run_id, trusted=trusted)
        self._clear_pending = False
        self._notice: Notice | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended and everything has been shown."""
        return self.view is not None and self.view.status in ENDED_RUNS and self.after >= self.view.messages

    def look(self, wait_s: float, now_s: float) -> MessageBatch:
        """What is new, as soon as there is something; at most so many frames a second, but the end at once."""
        calm_s = round(min(MIN_FRAME_S, max(0.0, self._shown_s + MIN_FRAME_S - now_s)), 3)
        if self._request is None:
            return self.cluster.messages(self.run_id, self.after, wait_s, calm_s)
        # Both in one call: for a short cell it is the only one. It may be made again, for the same run id runs once.
        batch = self.cluster.begin(self._request, wait_s, calm_s)
        self._request = None
        return batch

    def interrupt(self) -> None:
        """Interrupt it on the node; its beginning may have been cut short."""
        if self._request is not None:
            self.cluster.run(self._request)
            self._request = None
        self.cluster.interrupt(self.run_id)

    def take(self, batch: MessageBatch, now_ms: int, now_s: float) -> list[Shown]:
        """What a batch of messages adds to the cell. A message seen before is not shown again."""
        shown: list[Shown] = []
        for message in batch.messages:
            if message.n <= self.after:
                continue
            self.after = message.n
            shown.extend(self._cleaner.feed(message.msg_type, message.content, message.metadata))
        self.view = batch.run
        self._note_link(batch, now_ms)
        if self.is_over:
            shown.extend(self._cleaner.finish())
        frame = self._hold_clear(coalesce(shown))
        if frame:
            self._shown_s = now_s
        return frame

    def state_words(self, now_ms: int) -> str:
        """What the cost line says about it."""
        if self.away_since_s is not None:
            return "the cluster process is away, asking again; the node goes on and nothing is lost"
        if self.link == "lost" and self.link_lost_ms is not None:
            since = in_words(max(0, now_ms - self.link_lost_ms) / 1000)
            return f"link lost {since} ago, trying again; the node goes on; nothing is lost"
        if self.link in ("closed", "refused"):
            return f"link {self.link}: {one_line(self.link_detail)}"
        state = "starting" if self.view is None or self.view.status == RunStatus.QUEUED else "running"
        # With the link up that is what holds the output up on this side, a full disk above all.
        return f"{state}, but {one_line(self.link_detail)}" if self.link == "up" and self.link_detail else state

    def elapsed_ms(self, now_ms: int) -> int:
        """How long the cell has run so far."""
        if self.view is None or self.view.started_ms is None:
            return 0
        return (self.view.ended_ms or now_ms) - self.view.started_ms

    def _note_link(self, batch: MessageBatch, now_ms: int) -> None:
        if batch.link == "lost" and self.link != "lost":
            self.link_lost_ms = now_ms
        self.link, self.link_detail = batch.link, batch.link_detail

    def fresh_notice(self, batch: MessageBatch, now_ms: int) -> str:
        """That the node will end soon, once for each such word; empty when there is nothing new."""
        if batch.notice == self._notice:
            return ""
        self._notice = batch.notice
        if batch.notice is None:
            return f"{self.place.name} goes on after all"
        left = in_words(max(0, batch.notice.ends_ms - now_ms) / 1000)
        return (
            f"{self.place.name} ends in {left}: {one_line(batch.notice.reason, 300)}; "
            "what this cell has declared with -o is brought over before, if it obeys an interrupt by then"
        )

    def _hold_clear(self, frame: list[Shown]) -> list[Shown]:
        """A clear that waits is held until something comes to take the place, so that the cell does not flicker."""
        if self._clear_pending and frame:
            frame = [Clear(wait=True), *frame]
            self._clear_pending = False
        if frame and isinstance(frame[-1], Clear) and frame[-1].wait:
            self._clear_pending = True
            frame = frame[:-1]
        return frame


class Follower:
    """Follows one or several runs to their end in the cell that executes now."""

    def __init__(self, stage: Stage, line: CostLine, clock: Clock, pause: Callable[[float], None] = time.sleep) -> None:
        self._stage = stage
        self._line = line
        self._clock = clock
        self._pause = pause
        self._foresaw_s = float("-inf")

    def follow(self, runs: list[Followed]) -> None:
        """Until all are over.

        Raises:
            Detached: Ctrl-C was pressed twice.
            Unreachable: the cluster process stayed away; the node goes on, `%gpu attach` shows it again.
        """
        # At once, so that the line has its place right under the cell and what the node prints comes below it.
        self._tell(runs[0])
        with InterruptWatch() as watch:
            while True:
                going = [run for run in runs if not run.is_over]
                if not going:
                    return
                for run in going:
                    self._once(run, watch, WAIT_S / len(going))
                    if watch.news():
                        self._interrupt(going, watch)

    def _once(self, run: Followed, watch: InterruptWatch, wait_s: float) -> None:
        try:
            batch = watch.wait(lambda: run.look(wait_s, self._clock.monotonic_s()))
        except (Unreachable, BrokerUnavailable) as error:
            self._away(run, watch, error)
            return
        if batch is None:
            return
        run.away_since_s = None
        if notice := run.fresh_notice(batch, self._clock.now_ms()):
            self._stage.write(f"\n[gpumarket] {notice}\n", to_stderr=True)
        frame = run.take(batch, self._clock.now_ms(), self._clock.monotonic_s())
        self._publish(run, frame)
        self._tell(run)
        self._foresee(run, watch)

    def _publish(self, run: Followed, frame: list[Shown]) -> None:
        for one in frame:
            where = one_line(run.view.spill_path, 300) if run.view is not None else ""
            if isinstance(one, Truncated) and where and where not in one.note:
                one = Truncated(note=f"{one.note}; the rest goes to {where}")  # noqa: PLW2901 -- the same, completed
            self._stage.show([one], prefix=run.prefix)
            if isinstance(one, Clear):
                self._line.place_again()

    def _foresee(self, run: Followed, watch: InterruptWatch) -> None:
        """What Dask's scheduler has been given meanwhile, where the cell runs beside one and it is much."""
        forecast, now_s = run.forecast, self._clock.monotonic_s()
        if forecast is None or run.is_over or now_s - self._foresaw_s < FORECAST_EVERY_S:
            return
        self._foresaw_s = now_s
        try:
            view = watch.wait(run.cluster.dask)
        except GpuMarketError:
            return  # an estimate is not worth a word about why there is none
        for text in forecast.take(view, now_s) if view is not None else ():
            self._stage.say(text)

    def _tell(self, run: Followed) -> None:
        now_ms = self._clock.now_ms()
        self._line.live(run.prefix + live_text(run.place, run.elapsed_ms(now_ms), run.state_words(now_ms)))

    def _away(self, run: Followed, watch: InterruptWatch, error: Exception) -> None:
        now_s = self._clock.monotonic_s()
        if run.away_since_s is None:
            run.away_since_s = now_s
        if now_s - run.away_since_s > PATIENCE_S:
            raise Unreachable(f"{error}; the node goes on, `%gpu attach {run.run_id}` shows its output again") from None
        self._tell(run)
        watch.wait(lambda: self._pause(WAIT_S))

    def _interrupt(self, going: list[Followed], watch: InterruptWatch) -> None:
        ids = ", ".join(run.run_id for run in going)
        if watch.is_kernels_end():
            raise Detached(f"this kernel ends; the cell goes on, and `%gpu attach {ids}` shows it in the next one")
        if watch.count > 1:
            raise Detached(
                f"detached; the node was told to stop the cell, and `%gpu attach {ids}` shows what becomes of it"
            )
        self._stage.write("\n[gpumarket] interrupting on the node; once more detaches\n", to_stderr=True)
        for run in going:
            watch.wait(run.interrupt)
