"""How leases and costs show themselves at the end of a cell: a table, a chart, and the same in plain text.

Names come from marketplaces and nodes, so all text is escaped in HTML, and on one line in plain text. Charts are
Vega-Lite v5 bundles, which JupyterLab draws by itself, without asking anybody on the net.
"""

from __future__ import annotations

from typing import Any

import polars as pl
from IPython.display import display

from jupyter_gpumarket.api import LeaseView
from jupyter_gpumarket.cleaning.text import one_line
from jupyter_gpumarket.clock import in_words
from jupyter_gpumarket.money import NUSD_PER_USD, format_usd
from jupyter_gpumarket.notebook.costline import gpu_words
from jupyter_gpumarket.notebook.frames import cost_summary
from jupyter_gpumarket.notebook.stage import Table

VEGA_LITE = "application/vnd.vegalite.v5+json"
SCHEMA = "https://vega.github.io/schema/vega-lite/v5.json"
NEEDED = frozenset({"start", "end", "kind", "amount_nusd"})
# Up to this span a chart by hour tells more than one by day.
HOURS_SHOWN = 48


class Leases(list[LeaseView]):
    """Leases as a list, shown as a table."""

    def table(self) -> Table:
        """Name, what it is, state, rate, cost so far, what it can cost at most."""
        headers = ("name", "node", "state", "rate", "so far", "idle", "at most")
        rows = tuple(
            (
                one_line(view.lease.name, 60),
                gpu_words(view.lease),
                view.lease.state.value.replace("_", " ") + (" (may bill)" if view.lease.may_bill else ""),
                f"{format_usd(view.lease.price_nusd_hour)}/h",
                format_usd(view.cost_nusd, places=4),
                format_usd(view.idle_nusd, places=4),
                format_usd(view.worst_case_nusd, places=2),
            )
            for view in self
        )
        title = f"{len(self)} rented" if self else "nothing is rented"
        return Table(title=title, headers=headers, rows=rows, right=frozenset({3, 4, 5, 6}))

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


class Costs(pl.DataFrame):
    """The ledger's lines: a frame like any other, shown as a chart with its table."""

    def bundles(self) -> list[dict[str, Any]]:
        """What is shown, one below the other: the table, then the chart, each with its text."""
        if not set(self.columns) >= NEEDED:
            return [{"text/plain": str(self), "text/html": self._repr_html_()}]
        table = cost_summary(self)
        shown: list[dict[str, Any]] = [{"text/plain": table.text(), "text/html": table.html()}]
        if self.height:
            drawn = chart(self)
            shown.append({"text/plain": drawn["description"], VEGA_LITE: drawn})
        return shown

    def _ipython_display_(self) -> None:
        # Two displays: of one bundle with both, JupyterLab shows the table alone.
        for bundle in self.bundles():
            display(bundle, raw=True)


def costs_of(frame: pl.DataFrame) -> Costs:
    """The frame, able to show itself."""
    return Costs(frame)


def chart(frame: pl.DataFrame) -> dict[str, Any]:
    """Dollars by day (by hour, where all fits into two days) and what for, as a Vega-Lite v5 specification.

    A line of the ledger counts where it ends. Dollars are rounded to the micro-dollar here: a chart is looked at.
    """
    first, last = frame["start"].min(), frame["end"].max()
    hours = (last - first).total_seconds() / 3600 if first is not None and last is not None else 0  # type: ignore[operator, union-attr]
    unit, every = ("hour", "1h") if hours <= HOURS_SHOWN else ("day", "1d")
    sums = (
        frame.with_columns(pl.col("end").dt.truncate(every).alias("when"))
        .group_by("when", "kind", maintain_order=True)
        .agg(pl.col("amount_nusd").sum())
    )
    values = [
        {"when": when.isoformat(), "kind": one_line(kind, 40), "usd": round(amount / NUSD_PER_USD, 6)}
        for when, kind, amount in sums.iter_rows()
    ]
    time_unit = "utcyearmonthdatehours" if unit == "hour" else "utcyearmonthdate"
    return {
        "$schema": SCHEMA,
        "description": f"Cost by {unit} and kind; the table has the same by kind",
        "title": f"Cost by {unit}, {in_words(hours * 3600)} in all",
        "width": 480,
        "height": 180,
        "data": {"values": values},
        "mark": {"type": "bar", "tooltip": True},
        "encoding": {
            "x": {"field": "when", "type": "temporal", "timeUnit": time_unit, "title": None},
            "y": {"field": "usd", "type": "quantitative", "aggregate": "sum", "title": "dollars"},
            "color": {"field": "kind", "type": "nominal", "title": None},
        },
    }
