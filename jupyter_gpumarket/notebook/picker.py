"""`gm.OfferPicker`: the sidebar's list of offers as a widget in a notebook, wherever notebooks are shown.

The page asks over the widget's comm, and the kernel answers from the broker: no Jupyter server with our extension is
needed. Answers are made in a thread, so that a lease can be waited for while the kernel does other things.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from typing import Any

import anywidget
import msgspec
import traitlets

from jupyter_gpumarket import config
from jupyter_gpumarket.api import LeaseView, OfferList
from jupyter_gpumarket.api.answers import answer_of
from jupyter_gpumarket.api.columns import columns
from jupyter_gpumarket.api.requests import InvalidField
from jupyter_gpumarket.clock import SystemClock
from jupyter_gpumarket.errors import BadRequest
from jupyter_gpumarket.models import LeaseRequest, Offer, OfferQuery
from jupyter_gpumarket.notebook import public
from jupyter_gpumarket.notebook.identity import owner
from jupyter_gpumarket.notebook.picker_state import filters_of, state_of
from jupyter_gpumarket.notebook.rent_call import rent_and_wait
from jupyter_gpumarket.notebook.searching import search_of

MOST_OFFERS = 100_000
LONGEST_WAIT_S = 15.0
BUG = "the kernel's side of the widget failed at this"

_WORKERS = ThreadPoolExecutor(max_workers=4, thread_name_prefix="gpumarket-picker")


def _script() -> str:
    """The widget's module, as built from `labextension/src/widget.ts`."""
    built = files("jupyter_gpumarket") / "static" / "widget.js"
    if not built.is_file():
        message = "the widget is not built here; `pip install .` builds it, or `npm run build` in labextension"
        raise ImportError(message)
    return built.read_text("utf-8")


class OfferPicker(anywidget.AnyWidget):
    """Offers to look at, filter and choose from; `rent` rents the chosen one.

    Attributes:
        filters: what is looked for, both ways: what the user sets in the page is here, and what is set here is shown
            there. Keys: `text`, `min_price`, `max_price` (dollars an hour, as text), `min_vram_gib`, `max_vram_gib`,
            `models`, `marketplaces`, `region`, `tier`, `kind`, `samples`, `sort`, `hours`, `in_gib`, `out_gib`.
        selected: the chosen `Offer`, or None; set it to choose another.
        lease: the lease that was last rented here, as it was last seen.
    """

    filters = traitlets.Dict()
    selected = traitlets.Any(default_value=None, allow_none=True)
    lease = traitlets.Any(default_value=None, allow_none=True)
    height_px = traitlets.Int(480, min=240).tag(sync=True)
    _state = traitlets.Dict().tag(sync=True)
    _selected = traitlets.Unicode("").tag(sync=True)

    def __init__(self, gpu: str = "", *, height_px: int = 480, **filters: Any) -> None:
        """Args:
            gpu: the grammar `names:memory:count`, such as "H100:80GB:2", or words to search for.
            height_px: how high the widget is.
            **filters: any key of `filters`.

        Raises:
            BadRequest: an unknown key, or a value that it cannot take.
        """
        self._found: OfferList | None = None
        state = state_of({**filters, **({"text": gpu} if gpu else {})})
        super().__init__(_esm=_script(), height_px=height_px, _state=state, filters=filters_of(state))
        self.on_msg(self._asked)

    @traitlets.validate("filters")
    def _valid_filters(self, proposal: Any) -> dict[str, Any]:
        """What is not named stays as it is without any filter."""
        return filters_of(state_of(proposal["value"]))

    @traitlets.observe("filters")
    def _filters_set(self, change: Any) -> None:
        state = state_of(change["new"], before=self._state)
        if state != self._state:
            self._state = state

    @traitlets.observe("_state")
    def _state_came(self, change: Any) -> None:
        self.filters = filters_of(change["new"])

    @traitlets.observe("selected")
    def _selected_set(self, change: Any) -> None:
        offer = change["new"]
        key = "" if offer is None else _key(offer)
        if key != self._selected:
            self._selected = key

    @traitlets.observe("_selected")
    def _selected_came(self, change: Any) -> None:
        offers = [] if self._found is None else self._found.offers
        self.selected = next((offer for offer in offers if _key(offer) == change["new"]), None)

    def rent(
        self, *, budget: str | None = None, hours: float | None = None, name: str = "", timeout_s: float = 900
    ) -> LeaseView | None:
        """Rent the chosen offer.

        Without a budget, a dialog in the page asks, and None is returned. With one (dollars, as text), it is rented
        at once and waited for until it is ready; the budget and the hours are hard limits.

        Raises:
            BadRequest: nothing is chosen, or only a sample is.
            LeaseFailed: it did not become ready. BudgetExceeded: a budget does not cover it.
        """
        offer = self._chosen()
        hours = hours or float(self.filters["hours"])
        if budget is None:
            self.send({"tell": "ask to rent", "hours": hours})
            return None
        query = OfferQuery(marketplaces=(offer.marketplace,), offer_id=offer.offer_id, kind=offer.kind)
        view = rent_and_wait(public.connect(), query, budget=budget, hours=hours, name=name, timeout_s=timeout_s)
        self.lease = view
        return view

    def _chosen(self) -> Offer:
        if self.selected is None:
            raise BadRequest("no offer is chosen; click one in the list, or set `picker.selected`")
        if _key(self.selected) in self._samples():
            raise BadRequest("the chosen offer is a sample and cannot be rented here")
        offer: Offer = self.selected
        return offer

    def _samples(self) -> set[str]:
        if self._found is None:
            return set()
        pairs = zip(self._found.offers, self._found.figures, strict=True)
        return {_key(offer) for offer, figures in pairs if not figures.rentable}

    # what the page asks

    def _asked(self, _widget: Any, content: Any, _buffers: Any) -> None:
        """One question from the page: answered from a thread, sent from the kernel's own loop."""
        if not isinstance(content, Mapping) or not isinstance(content.get("id"), str):
            return
        try:
            loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            loop = None

        def work() -> None:
            value = self._answer(content)
            if loop is None:
                self._reply(content["id"], value)
            else:
                # The kernel may have ended meanwhile.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(self._reply, content["id"], value)

        _WORKERS.submit(work)

    def _answer(self, content: Mapping[str, Any]) -> Any:
        """What the page asked for, or the exception that came of it."""
        questions: dict[str, Callable[[Mapping[str, Any]], Any]] = {
            "columns": self._columns,
            "defaults": self._defaults,
            "rent": self._rent,
            "lease": self._lease,
            "release": self._release,
        }
        try:
            return questions.get(str(content.get("ask")), self._unknown)(content)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the page must hear of it
            return error

    def _reply(self, question: str, value: Any) -> None:
        if isinstance(value, Exception):
            status, problem = answer_of(value, bug=BUG)
            told = {"message": problem.message, "status": status, "kind": problem.error}
            self.send({"id": question, "error": told})
            return
        if isinstance(value, LeaseView):
            self.lease = value
        self.send({"id": question}, [msgspec.json.encode(value)])

    def _unknown(self, _content: Mapping[str, Any]) -> Any:
        raise InvalidField("the page asked for something unknown", name="ask")

    def _columns(self, content: Mapping[str, Any]) -> Any:
        search = search_of(OfferQuery(), refresh=content.get("refresh") is True, limit=MOST_OFFERS)
        self._found = public.connect().offers(search)
        return columns(self._found, now_ms=SystemClock().now_ms())

    def _defaults(self, _content: Mapping[str, Any]) -> Any:
        settings = config.load_settings(config.folders())
        named = {name: getattr(settings, name) for name in ("ask", "budget", "hours", "max_price", "project")}
        return {**named, "user": ""}

    def _rent(self, content: Mapping[str, Any]) -> LeaseView:
        try:
            wish = msgspec.convert(content.get("wish"), LeaseRequest)
        except msgspec.ValidationError as error:
            raise InvalidField(f"the wish cannot be read: {error}", name="wish") from None
        project = config.load_settings(config.folders()).project
        return public.connect().wish(msgspec.structs.replace(wish, owner=owner(project, {})))

    def _lease(self, content: Mapping[str, Any]) -> LeaseView:
        wait_s = min(LONGEST_WAIT_S, float(content.get("wait_s") or 0))
        return public.connect().lease(str(content["lease"]), after_seq=int(content["after_seq"]), wait_s=wait_s)

    def _release(self, content: Mapping[str, Any]) -> LeaseView:
        return public.connect().release(str(content["lease"]), reason=str(content.get("reason", ""))[:200])


def _key(offer: Offer) -> str:
    """As the front end names an offer (`keyOf` in columns.ts)."""
    return msgspec.json.encode([offer.marketplace, offer.offer_id]).decode()
